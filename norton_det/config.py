"""Defines the typed configuration: its schema, YAML files that inherit, and `key=value` overrides."""

import os
import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from norton_det.names import did_you_mean


class _PlainLoader(yaml.SafeLoader):
    """A YAML loader without aliases, by which a few lines may stand for billions of values."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("aliases (*name) are not taken")
        return super().compose_node(parent, index)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


PathText = Annotated[str, AfterValidator(os.path.expanduser)]
"""A file or folder; `~` at its start is the home folder."""


class CustomDataset(_Section):
    """Names a dataset in COCO format: its image folder and its annotation JSON."""

    images: PathText
    annotations: PathText


Positive = Annotated[int, Field(gt=0)]
Dataset = str | CustomDataset
NoneByName = BeforeValidator(lambda value: None if value == "none" else value)
Pair = Annotated[list[str], Field(min_length=2, max_length=2)]
OneOrMore = BeforeValidator(lambda value: [value] if isinstance(value, int) else None if value == "none" else value)
OwnCount = Annotated[Positive | None, NoneByName]


class ModelConfig(_Section):
    """Describes the detector: its structure, where its weights come from, and the image and anchor sizes (pixels)."""

    detector: Literal[
        "faster_rcnn",
        "mask_rcnn",
        "keypoint_rcnn",
        "faster_rcnn_v2",
        "mask_rcnn_v2",
        "retinanet",
        "retinanet_v2",
        "fcos",
    ] = "faster_rcnn"
    body: Literal[
        "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2",
        "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d",
    ] = "resnet50"  # fmt: skip
    """The ResNet that the detector stands on; weights from a file bring their own."""
    plan: PathText | dict[str, Any] = "none"
    """`none` (dense), a preset, a plan file, or a mapping (notation and rank; ranks and rates)."""
    width: Annotated[float, Field(gt=0, le=1)] = 1.0
    """A factor on every channel width of the body."""
    backbone_weights: PathText = "none"
    """`imagenet` (torchvision's, downloaded once), `none`, or a file."""
    weights: PathText = "none"
    """A detector's weights to fine-tune or evaluate, or `none`."""
    recover_images: Annotated[int, Field(ge=0)] = 0
    """How many training images a network that is compressed at the start is restored on before the first step."""
    teacher: PathText = "none"
    """The weights of the dense detector whose pyramid the features are to follow in training, or `none`."""
    norm_eps: Annotated[Annotated[float, Field(ge=0)] | None, NoneByName] = None
    """The eps of frozen BatchNorm in a file of `weights` that does not say it; `none`: torchvision's for its kind."""
    norm: Literal["batch", "frozen", "sync"] = "batch"
    """BatchNorm that is trained (`batch`), also over several processes with a GPU each (`sync`), or `frozen`."""
    trainable_stages: Annotated[int, Field(ge=0, le=5)] = 5
    """How many of the body's five stages are trained, counted from the last: stem, layer1 .. layer4."""
    min_size: Annotated[Annotated[list[Positive], Field(min_length=1)] | None, OneOrMore] = None
    """Length of an image's shorter side. Several lengths mean multi-scale training; evaluation takes the last one.
    Where this or one of the next settings is `none`, the value that the weights say is taken, else torchvision's."""
    max_size: Annotated[Positive | None, NoneByName] = None
    anchor_sizes: Annotated[Annotated[list[Positive], Field(min_length=1)] | None, NoneByName] = None
    """One size for each level of the pyramid; RetinaNet adds two between each and the next."""
    aspect_ratios: Annotated[list[Annotated[float, Field(gt=0)]] | None, NoneByName] = None
    """Heights of the anchors in shares of their widths."""
    fpn_channels: Positive = 256
    box_channels: Positive = 1024
    mask_channels: Positive = 256
    keypoint_channels: Positive = 512
    rpn_rois: OwnCount = None
    box_rois: OwnCount = None
    train_proposals: OwnCount = None
    test_proposals: OwnCount = None
    """The proposals kept in evaluation; in a one-stage detector the candidates of each level."""


class DataConfig(_Section):
    """Names the data, each set as a name of the catalogue or as `{images: DIR, annotations: FILE}`, and how it is
    read."""

    train: Dataset = "coco_2017_train"
    test: Dataset = "coco_2017_val"
    augmentation: Literal["none", "flip", "lsj", "photometric"] = "flip"
    """`lsj` (large-scale jitter) makes 1024 x 1024 images, which the model does not resize in training."""
    flip_pairs: Annotated[list[Pair] | None, NoneByName] = None
    """Pairs of keypoint names that change places in a mirrored image; `none`: left and right in the names tell."""
    oks_sigmas: Annotated[list[Annotated[float, Field(gt=0)]] | None, NoneByName] = None
    """The sigmas of OKS, one a keypoint; `none`: COCO's for COCO's keypoints, 0.05 for others."""
    workers: Annotated[int, Field(ge=0)] = 4
    keep_empty: bool = False
    """Whether images that show no object are trained on too, against false alarms."""
    damaged_images: Annotated[int, Field(ge=0)] = 0
    """How many training images that cannot be read are skipped, each with a warning, before a run stops."""


class TrainConfig(_Section):
    """Sets the schedule. `lr` is for 16 images a step and scaled to `batch_size`, which counts all processes."""

    batch_size: Positive = 16
    accumulation: Positive = 1
    """Forward passes into which a process splits its share of a step: less memory, the same step."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """The precision of convolutions and linear layers in training; all else, and evaluation, runs in float32."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0)] = 0.02
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    schedule: Literal["multistep", "cosine"] = "multistep"
    epochs: Annotated[float, Field(gt=0)] = 26
    milestones: list[float] = [16, 22]
    """Epochs after which the learning rate is divided by ten (`multistep`)."""
    warmup_iterations: Annotated[int, Field(ge=0)] = 1000
    max_iterations: Annotated[Positive | None, NoneByName] = None
    """Overrides the epochs; milestones and warm-up shrink with it."""
    distill_weight: Annotated[float, Field(gt=0)] = 1.0
    """The weight of the loss that `model.teacher` adds, which is 1 where the features are zero, 0 where they are the
    teacher's."""
    clip_norm: Annotated[Annotated[float, Field(gt=0)] | None, NoneByName] = None
    """The largest norm that a step's gradient may have, or `none`."""
    ema: Annotated[Annotated[float, Field(gt=0, lt=1)] | None, NoneByName] = None
    """Decay of an exponential moving average of the weights, which is then evaluated and saved; or `none`."""
    checkpoint_period: Positive = 5000
    """Iterations between checkpoints."""
    log_period: Positive = 20


class TestConfig(_Section):
    """Sets the images of a forward pass in evaluation, and what counts as a detection."""

    batch_size: Positive = 1
    score_threshold: Annotated[Annotated[float, Field(ge=0, le=1)] | None, NoneByName] = None
    """Where this or `detections` is `none`, the value that the weights say is taken, else torchvision's."""
    detections: OwnCount = None


class Config(_Section):
    """Holds everything that a run needs."""

    output_dir: PathText = "output/run"
    seed: Annotated[int, Field(ge=0)] = 0
    device: str = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:N`."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    test: TestConfig = TestConfig()


def load_config(config: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML file, given by path or by its name in configs/, with `key=value` overrides.

    A file names the one that it inherits from under `base:`, relative to itself. Raises ValueError in one line
    that names the key, the file or override it stands in, and the nearest valid key.

    Examples:
        >>> load_config("faster_rcnn_norton.yaml", ["train.lr=0.01"]).train.lr
        0.01
    """
    path = find_config(config)
    values = _read_with_bases(path, ())
    origin = f"{path}"
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ValueError(f"override {override!r} is not of the form key=value")
        values = _merge(values, _nested(key, _parse_value(text, override)))
        origin = f"{path} with overrides"
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{origin}: {_describe(error)}") from None


def save_config(config: Config, path: Path) -> None:
    """Write the complete configuration as YAML; `load_config` reads it back."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")


def find_config(config: str | Path) -> Path:
    """Return the file that a path or a name in configs/ stands for. Raises ValueError with the nearest name."""
    path = Path(config).expanduser()
    if path.is_file():
        return path
    folder = configs_folder()
    if (folder / path).is_file():
        return folder / path
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.yaml") if "base" not in p.parts)
    hint = did_you_mean(str(config), names)
    raise ValueError(f"no config {str(config)!r}: neither a file nor one of configs/{hint}")


def configs_folder() -> Path:
    """Return the folder of the configs: in the installed package, or beside it in a clone."""
    installed = Path(str(files("norton_det"))) / "configs"
    return installed if installed.is_dir() else Path(str(files("norton_det"))).parent / "configs"


def _read_with_bases(path: Path, children: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in children:
        raise ValueError(f"{path}: the chain of `base:` files comes back to it")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _PlainLoader) or {}
    except Exception as error:  # PyYAML's constructors raise many kinds
        raise ValueError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected keys and values, got a {type(values).__name__}")
    base = values.pop("base", None)
    if base is None:
        return values
    parent = path.parent / os.path.expanduser(str(base))
    if not os.path.isfile(parent):  # also where it is too long for a name
        raise ValueError(f"{path}: its base {str(base)!r} is no file beside it")
    return _merge(_read_with_bases(parent, (*children, path.resolve())), values)


def _merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `new` over `old`: sections are merged, everything else is replaced."""
    merged = dict(old)
    for key, value in new.items():
        section = key in Config.model_fields and isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = {**merged[key], **value} if section else value
    return merged


def _nested(dotted: str, value: Any) -> dict[str, Any]:
    section, separator, key = dotted.partition(".")
    return {section: {key: value}} if separator else {section: value}


def _parse_value(text: str, override: str) -> Any:
    try:
        value = yaml.load(text, _PlainLoader)
    except Exception:  # as above
        raise ValueError(f"override {override!r}: the value is not valid YAML") from None
    if isinstance(value, str):  # YAML 1.1 reads 1e-4 as text
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _describe(error: ValidationError) -> str:
    """Describe the most telling of pydantic's errors: an unknown key first, then the most deeply nested one."""
    worst = max(error.errors(), key=lambda e: (e["type"] == "extra_forbidden", len(e["loc"])))
    key = ".".join(str(part) for part in worst["loc"] if part not in ("str", "CustomDataset", "dict[str,any]"))
    if worst["type"] == "extra_forbidden":
        return f"unknown key {key!r}{_nearest_key(key)}"
    names = re.findall("'(.*?)'", worst["ctx"]["expected"]) if worst["type"] == "literal_error" else []
    hint = did_you_mean(str(worst["input"]), names)
    return f"{key}: {worst['msg'][0].lower()}{worst['msg'][1:]}, got {worst['input']!r}{hint}"


def _nearest_key(key: str) -> str:
    keys = _all_keys()
    by_last_part = [known for known in keys if known.split(".")[-1] == key.split(".")[-1]]
    return f"; did you mean {by_last_part[0]!r}?" if by_last_part else did_you_mean(key, keys)


def _all_keys(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    keys = []
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            keys += _all_keys(info.annotation, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys
