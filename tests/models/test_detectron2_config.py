"""Detectron2's configuration files, as people have them."""

import pytest
from of_detectron2 import write_config

from norton_det.models.detectron2_config import BASES, DEFAULTS, read_config, zoo_config
from norton_det.models.detectron2_settings import check_supported, settings_of

OCTAVES = "[[x, x * 2**(1.0/3), x * 2**(2.0/3) ] for x in [32, 64, 128, 256, 512 ]]"


def test_values_stand_over_those_of_the_base_and_these_over_detectron2s(tmp_path):
    config = read_config(write_config(tmp_path / "config.yaml", MODEL__RPN__NMS_THRESH=0.6))
    assert config["MODEL.RPN.NMS_THRESH"] == 0.6
    assert config["MODEL.RPN.PRE_NMS_TOPK_TEST"] == 1000
    assert config["MODEL.RPN.POSITIVE_FRACTION"] == 0.5


def test_a_base_that_is_there_is_read_before_a_public_one(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "Base-RCNN-FPN.yaml").write_text("MODEL: {RPN: {NMS_THRESH: 0.4}}\n")
    config = read_config(write_config(tmp_path / "sub/config.yaml"))
    assert config["MODEL.RPN.NMS_THRESH"] == 0.4
    assert config["MODEL.RPN.PRE_NMS_TOPK_TEST"] == DEFAULTS["MODEL.RPN.PRE_NMS_TOPK_TEST"][1]


def test_text_is_understood_as_detectron2_does(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "_BASE_: Base-RCNN-FPN.yaml\n"
        "INPUT:\n"
        "  MIN_SIZE_TRAIN: (640, 800)\n"
        "MODEL: {PIXEL_MEAN: &mean [1.0, 2.0, 3.0], PIXEL_STD: *mean,"
        " ROI_BOX_HEAD: {BBOX_REG_WEIGHTS: !!python/tuple [1.0, 2.0, 3.0, 4.0]}}\n"
    )
    settings = settings_of(read_config(path), "faster_rcnn")
    assert settings["min_size"] == [640, 800]
    assert settings["image_std"] == [3 / 255, 2 / 255, 1 / 255]
    assert settings["bbox_reg_weights"] == (1.0, 2.0, 3.0, 4.0)


def test_the_one_expression_of_detectron2s_own_files_is_known_and_not_run(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f'MODEL: {{ANCHOR_GENERATOR: {{SIZES: !!python/object/apply:eval ["{OCTAVES}"]}}}}\n')
    sizes = read_config(path)["MODEL.ANCHOR_GENERATOR.SIZES"]
    assert sizes == zoo_config("Base-RetinaNet.yaml")["MODEL.ANCHOR_GENERATOR.SIZES"]
    assert sizes[0] == pytest.approx([32, 40.317, 50.797], abs=1e-3)


ATTACKS = {
    "other Python": "A: !!python/object/apply:eval [\"open('trace', 'w')\"]",
    "a command": 'A: !!python/object/apply:os.system ["touch trace"]',
    "a new object": "A: !!python/object/new:os.system [touch trace]",
    "a module": "A: !!python/module:os",
    "a name": "A: !!python/name:os.system",
    "no YAML": "A: [",
    "a list": "- 1",
}


@pytest.mark.parametrize("kind", ATTACKS)
def test_what_is_no_plain_yaml_is_refused_and_does_not_run(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "attack.yaml").write_text(ATTACKS[kind])
    with pytest.raises(ValueError, match=r"^[^\n]*attack\.yaml: [^\n]+$"):
        read_config(tmp_path / "attack.yaml")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"MODEL__BACKBONE__NAME": "build_swin"},
            r"config\.yaml: MODEL\.BACKBONE\.NAME: build_swin is not supported",
        ),
        ({"MODEL__FPN__FUSE_TYPE": "avg"}, "FUSE_TYPE: avg is not supported, expected sum"),
        (
            {"MODEL__ROI_BOX_HEAD__POOLER_TYPE": "ROIPool"},
            "ROIPool is not supported, expected ROIAlign or ROIAlignV2",
        ),
        ({"MODEL__ROI_HEADS__NAME": "CascadeROIHeads"}, "CascadeROIHeads is not supported"),
        ({"MODEL__META_ARCHITECTURE": "PanopticFPN"}, "PanopticFPN is not supported, expected GeneralizedRCNN"),
        ({"MODEL__RESNETS__RES5_DILATION": 2}, "RES5_DILATION: 2 is not supported"),
        ({"INPUT__FORMAT": "YUV"}, r"INPUT\.FORMAT: 'YUV' is no value for it"),
        ({"MODEL__RPN__NMS_THRESH": "much"}, r"MODEL\.RPN\.NMS_THRESH: 'much' is no value for it"),
        ({"MODEL__RPN": 3}, r"MODEL\.RPN\.HEAD_NAME: expected a section of keys, got 3"),
        ({"INPUT__MIN_SIZE_TEST": 0}, "MIN_SIZE_TEST: 0, expected pixels"),
        ({"_BASE_": "mine.yaml"}, r"its _BASE_ 'mine\.yaml' is not there: put that file in its place"),
        ({"_BASE_": "config.yaml"}, "more than 8 files"),
        ({"_BASE_": None}, "build_resnet_backbone is not supported"),
    ],
)
def test_values_that_are_not_supported_are_named(changes, message, tmp_path):
    path = write_config(tmp_path / "config.yaml", **changes)
    with pytest.raises(ValueError, match=message):
        config = read_config(path)
        check_supported(config, "faster_rcnn")
        settings_of(config, "faster_rcnn")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.yaml: No such file"):
        read_config(tmp_path / "nothing.yaml")


def test_many_aliases_take_no_time(tmp_path):
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    (tmp_path / "laughs.yaml").write_text("\n".join(["a0: &a0 {MODEL: 1}", *levels]))
    assert read_config(tmp_path / "laughs.yaml").values == {}


def test_every_value_of_the_tables_is_one_of_its_key():
    for name in BASES:
        config = zoo_config(name)
        assert set(config.values) <= set(DEFAULTS)
        assert [config[key] for key in DEFAULTS]
