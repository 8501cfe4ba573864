import pytest
import yaml

from norton_det.config import Config, find_config, load_config, save_config


@pytest.fixture
def config_file(tmp_path):
    (tmp_path / "base.yaml").write_text("train: {lr: 0.1, epochs: 3}\nmodel: {min_size: [640, 800]}\n")
    path = tmp_path / "child.yaml"
    path.write_text("base: base.yaml\ntrain:\n  lr: 1e-3\n")
    return path


def test_a_file_inherits_and_replaces(config_file):
    config = load_config(config_file)
    assert (config.train.lr, config.train.epochs) == (0.001, 3)
    assert config.model.min_size == [640, 800]


def test_overrides_win(config_file):
    config = load_config(
        config_file, ["train.lr=5e-4", "model.min_size=320", "data.train={images: a, annotations: b}"]
    )
    assert config.train.lr == 5e-4
    assert config.model.min_size == [320]
    assert config.data.train.images == "a"


def test_what_can_be_left_out_is_none(config_file):
    train = load_config(config_file, ["train.ema=none", "train.clip_norm=none", "train.max_iterations=null"]).train
    assert (train.ema, train.clip_norm, train.max_iterations) == (None, None, None)
    assert load_config(config_file, ["train.ema=0.999"]).train.ema == 0.999


def test_keypoints_are_paired_and_weighed_as_wanted(config_file):
    words = ["data.flip_pairs=[[left_eye, right_eye], [a, b]]", "data.oks_sigmas=[0.1, 0.025, 1]"]
    data = load_config(config_file, words).data
    assert (data.flip_pairs, data.oks_sigmas) == ([["left_eye", "right_eye"], ["a", "b"]], [0.1, 0.025, 1])
    untold = load_config(config_file, ["data.flip_pairs=none", "data.oks_sigmas=none"]).data
    assert (untold.flip_pairs, untold.oks_sigmas) == (None, None)


def test_plan_given_as_a_mapping_replaces_the_inherited_one(config_file):
    config = load_config(config_file, ["model.plan={notation: '[0.]*20', rank: 2}"])
    assert config.model.plan == {"notation": "[0.]*20", "rank": 2}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.lrr=1", "unknown key 'train.lrr'; did you mean 'train.lr'?"),
        ("lr=1", "unknown key 'lr'; did you mean 'train.lr'?"),
        ("data.train={image: a, annotations: b}", "data.train"),
        ("train.lr=-1", "train.lr: input should be greater than 0, got -1"),
        ("model.detector=fast", "model.detector: input should be 'faster_rcnn'"),
        ("model.detector=mask_rcnn_v3", "got 'mask_rcnn_v3'; did you mean 'mask_rcnn_v2'?"),
        ("model.detector=retina_net", "got 'retina_net'; did you mean 'retinanet'?"),
        ("model.body=resnet-101", "got 'resnet-101'; did you mean 'resnet101'?"),
        ("model.body=wide_resnet50", "got 'wide_resnet50'; did you mean 'wide_resnet50_2'?"),
        ("train.ema=1.5", "train.ema: input should be less than 1, got 1.5"),
        ("train.precision=half", "train.precision: input should be 'float32'"),
        ("data.flip_pairs=[[a]]", "data.flip_pairs.0: list should have at least 2 items"),
        ("data.flip_pairs=[a, b]", "data.flip_pairs.0: input should be a valid list, got 'a'"),
        ("data.oks_sigmas=[0.1, 0]", "data.oks_sigmas.1: input should be greater than 0, got 0"),
        ("seed=-1", "seed: input should be greater than or equal to 0"),
        ("train.lr", "not of the form key=value"),
        ("train.lr=[1", "not valid YAML"),
    ],
)
def test_wrong_overrides_are_named(config_file, override, expected):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        load_config(config_file, [override])
    assert expected in str(error.value)


def test_wrong_file_is_named(tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text("train:\n  epoch: 3\n")
    with pytest.raises(ValueError, match=r"wrong\.yaml: unknown key 'train\.epoch'; did you mean 'train\.epochs'"):
        load_config(path)


def test_yaml_tags_are_refused(tmp_path):
    path = tmp_path / "attack.yaml"
    trace = tmp_path / "pwned"
    path.write_text(f"seed: !!python/object/apply:os.system ['touch {trace}']\n")
    with pytest.raises(ValueError, match=r"attack\.yaml: cannot be read as YAML"):
        load_config(path)
    with pytest.raises(ValueError, match="the value is not valid YAML"):
        load_config("quickstart.yaml", [f"seed=!!python/object/apply:os.system ['touch {trace}']"])
    assert not trace.exists()


@pytest.mark.parametrize("key", ["seed", "model.plan"])
def test_aliases_that_would_unfold_to_a_billion_values_are_refused_at_once(key, tmp_path):
    levels = [f"&a{n + 1} [{', '.join([f'*a{n}'] * 10)}]" for n in range(12)]
    text = f"[&a0 [1], {', '.join(levels)}]"
    (tmp_path / "laughs.yaml").write_text(f"seed: {text}\n")
    with pytest.raises(ValueError, match=r"laughs\.yaml: cannot be read as YAML: aliases"):
        load_config(tmp_path / "laughs.yaml")
    with pytest.raises(ValueError, match="the value is not valid YAML"):
        load_config("quickstart.yaml", [f"{key}={text}"])


def test_a_circle_of_bases_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(ValueError, match="comes back"):
        load_config(tmp_path / "a.yaml")


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"did you mean 'faster_rcnn_norton\.yaml'"):
        find_config("faster_rcnn_nortn.yaml")


def test_saved_config_reads_back(config_file, tmp_path):
    config = load_config(config_file, ["data.test={images: a, annotations: b}"])
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config


def test_saved_config_is_complete(tmp_path):
    save_config(Config(), tmp_path / "saved.yaml")
    saved = yaml.safe_load((tmp_path / "saved.yaml").read_text())
    assert set(saved["train"]) == set(type(Config().train).model_fields)
