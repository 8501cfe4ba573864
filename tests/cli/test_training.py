"""Training as a user runs it: on several processes, stopped in every way and gone on with."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from detectors import tiny_classifier, tiny_detector

from norton_det.builders import detector as building
from norton_det.builders import training
from norton_det.builders.datasets import build_training_dataset
from norton_det.builders.detector import build_detector
from norton_det.builders.resolve import resolve_dataset
from norton_det.builders.training import build_training
from norton_det.cli.main import main
from norton_det.compression import recovery_run
from norton_det.config import load_config
from norton_det.data import coco
from norton_det.data.catalog import read_categories
from norton_det.engine.checkpoint import CheckpointFolder
from norton_det.models.persistence import save_weights

SCRIPT = Path(__file__).parents[2] / "tools/train_net.py"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
WORDS = [
    *("--config", "quickstart.yaml", "model.width=0.125", "model.min_size=[64, 96]", "model.max_size=128"),
    *("model.fpn_channels=16", "model.box_channels=32", "model.train_proposals=50", "model.test_proposals=50"),
    *("train.batch_size=4", "train.max_iterations=16", "train.log_period=1", "train.warmup_iterations=0"),
    *("test.batch_size=2", "test.score_threshold=0", "train.checkpoint_period=3", "device=cpu"),
]


@pytest.fixture(autouse=True)
def one_thread(drawn_datasets, monkeypatch):
    """Processes that are started compute with one thread, and so does this one: their bits are compared."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(datasets, tmp_path_factory):
    """A run that nobody disturbed."""
    output = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NORTON_DATASETS", str(datasets))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        assert main(["train", *WORDS, "train.ema=0.9", f"output_dir={output}"]) == 0
        torch.set_num_threads(threads)
    return output


def train(output, *words):
    return main(["train", *WORDS, *words, f"output_dir={output}"])


def start(output, *words, launcher=(), **environment):
    command = [sys.executable, *launcher, str(SCRIPT), *WORDS, *words, f"output_dir={output}"]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    )


def start_two(output, *words):
    """Both processes of a run, with nobody who watches over them as torchrun would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    return [start(output, *words, RANK=str(rank), LOCAL_RANK=str(rank), **place) for rank in range(2)]


def wait_for_iteration(process, output, iteration):
    metrics = Path(output) / "metrics.jsonl"
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= iteration):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)


def weights(folder, name="model_final.pth"):
    return torch.load(Path(folder) / name, weights_only=True)["model"]


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(whole):
    moments = random.Random(0)
    for attempt, iteration in enumerate((2, moments.randint(4, 6))):
        process = start("killed", "train.ema=0.9", *(["--resume"] if attempt else []))
        wait_for_iteration(process, "killed", iteration)
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.communicate()
    assert not Path("killed/model_final.pth").exists()
    assert train("killed", "train.ema=0.9", "--resume") == 0
    assert_same_weights(weights(whole), weights("killed"))
    for name in ("evaluation/metrics.json", "evaluation/predictions.json"):
        assert (whole / name).read_bytes() == Path("killed", name).read_bytes()


def stopped_at(iteration, output, *words):
    """A run that gets SIGTERM in the midst of an iteration; returns its exit code."""
    losses, passes = training.detection_losses, []

    def interrupted(*args, **more):
        passes.append(None)
        if len(passes) == iteration:
            os.kill(os.getpid(), signal.SIGTERM)
        return losses(*args, **more)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(training, "detection_losses", interrupted)
        train(output, *words)
    return ended.value.code


def test_sigterm_saves_then_ends_and_the_run_goes_on_from_there(whole, caplog):
    assert stopped_at(5, "stopped", "train.ema=0.9", "train.checkpoint_period=100") == 128 + signal.SIGTERM
    assert "stopped by SIGTERM at iteration 5: --resume goes on there" in caplog.messages
    assert [path.name for path in Path("stopped/checkpoints").iterdir()] == ["iteration_0000005.pth"]
    assert train("stopped", "train.ema=0.9", "--resume") == 0
    assert_same_weights(weights(whole), weights("stopped"))


SHORT = [
    *("model.body=resnet18", "model.plan={notation: '[0.]*2+[0.25]*10', rank: 1}", "train.max_iterations=3"),
    *("train.optimizer=sgd", "train.lr=0.001"),
]


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_a_detector_of_one_stage_resumes_to_the_same_bits(kind):
    words = [*SHORT, f"model.detector={kind}"]
    assert train("whole", *words) == 0
    assert stopped_at(2, "parts", *words) == 128 + signal.SIGTERM
    assert train("parts", *words, "--resume") == 0
    assert_same_weights(weights("whole"), weights("parts"))
    assert len(Path("parts/metrics.jsonl").read_text().splitlines()) == 3
    start, end = weights("parts/checkpoints", "iteration_0000002.pth"), weights("parts")
    assert not torch.equal(start["backbone.body.conv1.weight"], end["backbone.body.conv1.weight"])
    assert json.loads(Path("parts/evaluation/predictions.json").read_text())
    assert Path("parts/evaluation/metrics.json").read_bytes() == Path("whole/evaluation/metrics.json").read_bytes()


@pytest.fixture
def few_steps(monkeypatch):
    """Of recovery, whose result does not matter."""
    monkeypatch.setattr(building, "compress_and_recover", partial(building.compress_and_recover, steps=2))


def from_detector(kind, seed=0):
    """Words of a run that compresses and restores a detector at its start, and the file of that detector."""
    path = Path(f"dense{seed}.pth")
    save_weights(path, tiny_detector(kind, "resnet18", seed=seed))
    return path, [*SHORT, f"model.detector={kind}", f"model.weights={path}", "model.recover_images=2"]


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet"])
def test_a_resumed_run_neither_reads_its_weights_nor_restores_them_again(kind, few_steps, monkeypatch, caplog):
    dense, words = from_detector(kind)
    assert train("whole", *words) == 0
    assert "restored on 2 images" in caplog.text
    assert stopped_at(2, "parts", *words) == 128 + signal.SIGTERM
    assert Path("parts/recovery.pth").exists()

    dense.unlink()
    Path("parts/recovery.pth").unlink()
    monkeypatch.setattr(building, "compress_and_recover", lambda *args, **more: pytest.fail("compressed again"))
    caplog.clear()
    assert train("parts", *words, "--resume") == 0
    assert "restored on" not in caplog.text
    assert_same_weights(weights("whole"), weights("parts"))
    whole, parts = (torch.load(f"{run}/model_final.pth", weights_only=True) for run in ("whole", "parts"))
    for told in ("network", "plan", "kept", "dense_weights", "categories"):
        assert whole[told] == parts[told]
    assert Path("parts/compression.json").read_bytes() == Path("whole/compression.json").read_bytes()
    assert not list(Path().glob("*/recovery.pth"))


def test_a_run_from_other_weights_does_not_take_what_a_stopped_recovery_left(few_steps, monkeypatch, caplog):
    _, words = from_detector("faster_rcnn")
    distill, parts = recovery_run.distill, []

    def stopped(*args, **more):
        parts.append(None)
        if len(parts) == 5:
            raise KeyboardInterrupt
        return distill(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(recovery_run, "distill", stopped)
        assert train("used", *words) == 130
    left = torch.load("used/recovery.pth", weights_only=True)
    assert len(left["parts"]) == 4

    _, others = from_detector("faster_rcnn", seed=1)
    assert train("used", *others) == 0
    assert "used/recovery.pth is of another recovery" in caplog.text
    assert torch.load("used/recovery-1.pth", weights_only=True)["key"] == left["key"]
    assert train("fresh", *others) == 0
    assert_same_weights(weights("used"), weights("fresh"))
    assert not Path("used/recovery.pth").exists()


def test_a_stopped_recovery_goes_on_where_it_is_the_same_one(few_steps, monkeypatch):
    _, words = from_detector("fcos")
    assert train("whole", *words, "train.max_iterations=1") == 0
    distill, parts = recovery_run.distill, []

    def counted(*args, **more):
        parts.append(None)
        if len(parts) == 5:
            raise KeyboardInterrupt
        return distill(*args, **more)

    monkeypatch.setattr(recovery_run, "distill", counted)
    assert train("parts", *words, "train.max_iterations=1") == 130
    assert train("parts", *words, "train.max_iterations=1", "--resume") == 0
    told = json.loads(Path("parts/compression.json").read_text())["recovery"]
    assert len(told) == len(parts) - 1 + 1  # the one that was stopped was begun twice; the last is the whole
    assert_same_weights(weights("whole"), weights("parts"))


def test_a_truncated_newest_checkpoint_is_noticed(whole, caplog):
    assert train("parts", "train.ema=0.9") == 0
    newest = Path("parts/checkpoints/iteration_0000016.pth")
    newest.write_bytes(newest.read_bytes()[:-1000])
    assert train("parts", "train.ema=0.9", "--resume") == 0
    assert "iteration_0000016.pth: not a weights file that can be read safely" in caplog.text
    assert "resuming from parts/checkpoints/iteration_0000015.pth" in caplog.text
    assert_same_weights(weights(whole), weights("parts"))


def test_a_full_disk_is_one_line_and_loses_nothing(monkeypatch, capsys):
    save, saved = torch.save, []

    def save_some(content, file):
        saved.append(file)
        if len(saved) == 2:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        save(content, file)

    monkeypatch.setattr(torch, "save", save_some)
    assert train("full") == 2
    message = "cannot write full/checkpoints/iteration_0000006.pth: No space left on device"
    assert capsys.readouterr().err.strip().splitlines()[-1] == f"norton-det train: {message}"
    assert [path.name for path in Path("full/checkpoints").iterdir()] == ["iteration_0000003.pth"]
    assert train("full", "--resume", "train.max_iterations=16") == 0


def test_a_loss_that_is_not_finite_names_its_images(monkeypatch, capsys):
    losses = training.detection_losses
    monkeypatch.setattr(
        training,
        "detection_losses",
        lambda *args, **more: {k: v * torch.inf for k, v in losses(*args, **more).items()},
    )
    assert train("broken") == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("norton-det train: loss or gradient is not finite at iteration 1, images ")
    assert len(message.split("images ")[1].split(";")[0].split(", ")) == 4


def test_two_processes_do_what_one_does_that_accumulates(whole, capfd):
    # in float32, over 16 steps of SGD, the weights agree to 1e-6: only sums of gradients may differ in their order
    words = ["model.norm=frozen", "train.ema=0.9", "train.optimizer=sgd", "data.augmentation=photometric"]
    words.append(f"model.teacher={whole / 'model_final.pth'}")
    process = start("two", *words, launcher=TORCHRUN)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert train("one", *words, "train.accumulation=2") == 0
    torch.testing.assert_close(weights("two"), weights("one"), rtol=0, atol=1e-6)
    two, one = (
        [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()] for run in ("two", "one")
    )
    assert all(line["loss_distillation"] > 0 for line in two)
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-5)

    # evaluated by two processes, images dealt in batches, and by one
    assert train("again", "--eval-only", "model.weights=two/model_final.pth") == 0
    for name in ("evaluation/metrics.json", "evaluation/predictions.json"):
        assert Path("two", name).read_bytes() == Path("again", name).read_bytes()
    assert len({result["image_id"] for result in json.loads(Path(f"two/{name}").read_text())}) == 7


@pytest.mark.parametrize("end", [lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: os._exit(1)])
def test_a_loading_process_that_dies_is_one_line_and_the_run_goes_on(end, whole, monkeypatch, capsys):
    read, images = coco.read_image, []

    def read_some(path):
        images.append(path)
        return read(path) if len(images) < 33 else end()

    with monkeypatch.context() as patch:
        patch.setattr(coco, "read_image", read_some)
        assert train("orphan", "train.ema=0.9", "data.workers=1") == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    told = "a process that reads images died; --resume goes on from the last checkpoint"
    assert message.startswith(f"norton-det train: {told} (DataLoader worker (pid")
    assert not Path("orphan/model_final.pth").exists()
    assert CheckpointFolder(Path("orphan/checkpoints")).load_newest()["iteration"] >= 3
    assert train("orphan", "train.ema=0.9", "data.workers=1", "--resume") == 0
    assert_same_weights(weights(whole), weights("orphan"))


def test_two_processes_start_from_anything_and_resume_as_one_process_goes_through(monkeypatch):
    """Dense weights that are compressed and restored, a backbone likewise, and compressed weights with a teacher."""
    monkeypatch.setattr(building, "compress_and_recover", partial(building.compress_and_recover, steps=1))
    common = [*WORDS, *SHORT, "train.ema=0.9", "train.schedule=multistep", "train.milestones=[]", "model.norm=frozen"]
    several = [*common, "train.accumulation=2"]
    once = [*several, "train.max_iterations=1", "model.recover_images=2"]
    for kind in ("mask_rcnn_v2", "fcos"):
        save_weights(Path(f"{kind}.pth"), tiny_detector(kind, "resnet18"))
    save_weights(Path("small.pth"), tiny_detector("fcos", "resnet18", plan="[0.]*2+[0.25]*10"))
    save_weights(Path("body.pth"), tiny_classifier("resnet18"))
    dense = ["model.detector=mask_rcnn_v2", "model.weights=mask_rcnn_v2.pth", "model.recover_images=2"]
    runs = [
        [*once, *dense, "output_dir=dense"],
        [*several, *dense, "output_dir=dense", "train.max_iterations=2", "--resume"],
        [*once, "output_dir=body", "model.detector=keypoint_rcnn", "model.backbone_weights=body.pth"],
        [*once, "output_dir=small", "model.detector=fcos", "model.weights=small.pth", "model.teacher=fcos.pth"],
    ]
    command = [*TORCHRUN, str(Path(__file__).with_name("together.py")), json.dumps([["train", *run] for run in runs])]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, [line for line in done.stderr.splitlines() if "norton-det" in line]
    assert "restored on 2 images" in done.stderr

    assert train("one", *common[len(WORDS) :], *dense, "train.accumulation=4", "train.max_iterations=2") == 0
    torch.testing.assert_close(weights("dense"), weights("one"), rtol=0, atol=1e-6)
    for run in ("body", "small"):
        assert json.loads(Path(run, "evaluation/metrics.json").read_text())["bbox"]
        assert all(value.isfinite().all() for value in weights(run).values())
    [line] = Path("small/metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["loss_distillation"] > 0


def test_two_processes_save_once_on_sigterm():
    process = start("stopped", "train.max_iterations=200", "data.workers=1", "model.norm=sync", launcher=TORCHRUN)
    wait_for_iteration(process, "stopped", 2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode != 0
    assert errors.count("stopped by SIGTERM at iteration ") == 1
    newest = max(Path("stopped/checkpoints").iterdir())
    stopped_at = torch.load(newest, weights_only=True)["iteration"]
    assert stopped_at >= 2 and f"stopped by SIGTERM at iteration {stopped_at}:" in errors


@pytest.mark.parametrize(("victim", "kind"), [(0, "faster_rcnn"), (1, "retinanet")])
def test_where_one_of_two_processes_is_killed_the_other_ends_with_a_line(victim, kind):
    processes = start_two("pair", "train.max_iterations=100000", "train.ema=0.9", f"model.detector={kind}")
    wait_for_iteration(processes[0], "pair", 4)
    processes[victim].kill()
    survivor = processes[1 - victim]
    _, errors = survivor.communicate(timeout=60)
    processes[victim].communicate()
    assert survivor.returncode == 2, errors
    message = errors.strip().splitlines()[-1]
    told = "another of the 2 processes ended; --resume goes on from the last checkpoint"
    assert message.startswith(f"norton-det train: {told} ")
    assert "Traceback" not in errors
    newest = CheckpointFolder(Path("pair/checkpoints")).load_newest()
    assert newest is not None and newest["iteration"] >= 3


def test_averaged_weights_are_what_is_kept(whole):
    checkpoint = torch.load(whole / "checkpoints/iteration_0000016.pth", weights_only=True)
    assert_same_weights(weights(whole), checkpoint["average"])
    assert not torch.equal(
        checkpoint["model"]["rpn.head.cls_logits.weight"], weights(whole)["rpn.head.cls_logits.weight"]
    )


def test_averaged_weights_are_what_is_evaluated(whole):
    assert train("again", "--eval-only", f"model.weights={whole / 'model_final.pth'}") == 0
    name = "evaluation/predictions.json"
    assert json.loads(Path("again", name).read_text())
    assert Path("again", name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize(("precision", "iterations"), [("bfloat16", 2), ("float16", 8)])
def test_lower_precision_trains(precision, iterations, caplog):
    assert train("low", f"train.precision={precision}", f"train.max_iterations={iterations}") == 0
    assert all(v.dtype != torch.bfloat16 and v.isfinite().all() for v in weights("low").values())
    assert "images behind each BatchNorm: 4" in caplog.text
    scaler = torch.load(f"low/checkpoints/iteration_{iterations:07d}.pth", weights_only=True)["scaler"]
    assert bool(scaler) == (precision == "float16")


def test_a_folder_of_another_run_is_told_kept_and_not_gone_on_with(capsys, caplog):
    """Its checkpoints are neither resumed with other data, nor lost where the next run starts afresh."""
    words = ["train.max_iterations=1", "data.test=shapes_val"]
    assert train("used", *words) == 0
    assert train("used", *words, "data.train=shapes_val", "train.max_iterations=2", "--resume") == 2
    told = "--resume: data.train was another file when the run began than 'shapes_val' is now: give that, or begin"
    assert told in capsys.readouterr().err
    first = Path("used/checkpoints/iteration_0000001.pth").read_bytes()
    assert train("used", *words, "data.train=shapes_val") == 0
    assert "used holds another run, this one starts afresh; its files: used/earlier-1" in caplog.messages
    assert Path("used/earlier-1/checkpoints/iteration_0000001.pth").read_bytes() == first
    assert load_config(Path("used/earlier-1/config.yaml")).data.train == "shapes_train"
    assert len(Path("used/metrics.jsonl").read_text().splitlines()) == 1


def test_frozen_statistics_are_not_warned_about(caplog):
    assert train("frozen", "model.norm=frozen", "train.max_iterations=1") == 0
    assert "BatchNorm" not in caplog.text


def test_a_step_divides_among_the_passes(capsys):
    assert train("uneven", "train.accumulation=3") == 2
    expected = "train.batch_size: 4 images do not divide among 1 processes with 3 passes each (train.accumulation)"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(("augmentation", "training_size"), [("lsj", (1024, 1024)), ("none", (72, 96))])
def test_images_are_resized_once(augmentation, training_size):
    config = load_config("quickstart.yaml", [*WORDS[2:], "model.min_size=72", f"data.augmentation={augmentation}"])
    files = resolve_dataset(config, "train")
    categories = read_categories(files, "bbox")
    built = build_detector(config, categories, None)
    dataset = build_training_dataset(config, files, categories)
    build_training(config, built, dataset, torch.device("cpu"))
    resize = built.model.transform
    assert resize.train()([dataset[0][0]])[0].image_sizes == [training_size]
    assert resize.eval()([torch.zeros(3, 96, 128)])[0].image_sizes == [(72, 96)]
