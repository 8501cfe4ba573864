"""What is refused of files, whole or damaged, that should hold an exported detector."""

import shutil
from dataclasses import replace

import pytest
import torch
from clear import clear_detector, pictures
from torch import nn

from norton_det.deploy.export import METADATA_KEY, describe_export, export_onnx
from norton_det.deploy.openvino import convert_onnx, save_openvino
from norton_det.deploy.runtimes import load_exported

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")


@pytest.mark.parametrize("name", ["damaged.onnx", "damaged.xml", "missing.onnx", "model.txt"])
def test_a_file_that_cannot_be_used_is_named(name, tmp_path):
    if not name.startswith("missing"):
        (tmp_path / name).write_bytes(b"<net>no model\0")
        (tmp_path / name).with_suffix(".bin").touch()
    with pytest.raises(ValueError, match=name) as caught:
        load_exported(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """model.onnx, and model.xml with its model.bin."""
    folder = tmp_path_factory.mktemp("exported")
    description = export_onnx(clear_detector("faster_rcnn", body="resnet18"), folder / "model.onnx", pictures()[0])
    save_openvino(convert_onnx(folder / "model.onnx", description), folder / "model.xml")
    return folder


@pytest.fixture
def exported(intact, tmp_path):
    """A copy of them to be damaged."""
    shutil.copytree(intact, tmp_path, dirs_exist_ok=True)
    return tmp_path


def refused(path):
    with pytest.raises(ValueError, match=rf"^[^\n]*{path.name}: [^\n]+$") as caught:
        load_exported(path)
    return str(caught.value)


@pytest.mark.parametrize("name", ["model.onnx", "model.xml", "model.bin"])
@pytest.mark.parametrize("kept", [0, 0.01, 0.5, 0.99])
def test_exported_files_that_are_cut_off_are_refused(name, kept, exported):
    content = (exported / name).read_bytes()
    (exported / name).write_bytes(content[: int(kept * len(content))])
    refused(exported / name.replace(".bin", ".xml"))


def test_an_openvino_file_without_its_weights_is_refused(exported):
    (exported / "model.bin").unlink()
    assert "model.bin, are not beside it" in refused(exported / "model.xml")


ENTITIES = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 10}">' for n in range(12))


@pytest.mark.parametrize(
    "text",
    [
        "<html><body>no network</body></html>",
        "<net>" * 100_000,
        f'<!DOCTYPE net [<!ENTITY e0 "0123456789">{ENTITIES}]><net name="&e12;" version="11"><layers/><edges/></net>',
        '<!DOCTYPE net [<!ENTITY e SYSTEM "secret">]><net name="&e;" version="11"><layers/><edges/></net>',
    ],
    ids=["html", "nested", "entity bomb", "entity of a file"],
)
def test_an_xml_file_that_is_no_network_is_refused(text, tmp_path):
    (tmp_path / "secret").write_text("do not tell")
    (tmp_path / "attack.bin").touch()
    (tmp_path / "attack.xml").write_text(f'<?xml version="1.0"?>{text}')
    assert "do not tell" not in refused(tmp_path / "attack.xml")


@pytest.mark.parametrize("described", ["nothing", "wrong types", "another detector"])
def test_networks_of_others_are_refused(described, tmp_path):
    """Valid files of a linear layer, two of which say what only ours say."""
    import onnx
    import openvino

    torch.onnx.export(nn.Linear(2, 2), (torch.zeros(1, 2),), str(tmp_path / "foreign.onnx"), dynamo=False)
    network = openvino.Core().read_model(tmp_path / "foreign.onnx")
    if described != "nothing":
        detector = describe_export(clear_detector("faster_rcnn"))
        text = replace(detector, min_size="[]").to_json() if described == "wrong types" else detector.to_json()
        model = onnx.load(str(tmp_path / "foreign.onnx"))
        model.metadata_props.add(key=METADATA_KEY, value=text)
        onnx.save(model, str(tmp_path / "foreign.onnx"))
        network.set_rt_info(text, [METADATA_KEY])
    save_openvino(network, tmp_path / "foreign.xml")
    told = "its graph is not" if described == "another detector" else "its description of the detector"
    for name in ("foreign.onnx", "foreign.xml"):
        assert told in refused(tmp_path / name)
