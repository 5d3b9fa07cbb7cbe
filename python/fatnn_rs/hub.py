"""Networks on the Hugging Face hub: :class:`HubNetwork`. Needs ``pip install huggingface_hub``.

A repository holds ``net.safetensors``, as :func:`fatnn_rs.save` writes it, and, if there is one,
the card ``net.json``. Torch is not needed.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

from fatnn_rs import __version__
from fatnn_rs.card import Card, read_card
from fatnn_rs.errors import ConfigError, FormatError, UnsupportedError
from fatnn_rs.numpy_network import NumpyNetwork, load_numpy
from fatnn_rs.zoo import Classifier

try:
    from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
except ImportError as error:
    raise UnsupportedError(
        f"fatnn_rs.hub needs huggingface_hub ({error}): pip install huggingface_hub"
    ) from error

__all__ = ["HubNetwork"]

_FILE, _CARD, _CONFIG = "net.safetensors", "net.json", "config.json"
_USAGE = """
    from fatnn_rs.hub import HubNetwork
    network = HubNetwork.from_pretrained("NAME OF THIS REPOSITORY")
    logits = network(images)  # a NumPy array, float32 [N, C, H, W]
"""


class HubNetwork(
    ModelHubMixin,
    library_name="fatnn-rs",
    tags=["ternary", "quantization"],
):
    """A saved network that can be pushed to the hub and loaded from it.

    ``push_to_hub(repo_id)`` and ``save_pretrained(directory)`` write it;
    ``HubNetwork.from_pretrained(repo_id_or_directory)`` reads it. All three take the arguments that
    :class:`huggingface_hub.ModelHubMixin` documents.

    Parameters
    ----------
    path
        A network that :func:`fatnn_rs.save` or ``fatnn train`` wrote, or a network of the zoo
        (``fatnn_rs.zoo.path(name)``). If it has a card next to it, the card is used, too.

    Attributes
    ----------
    path
        The file.
    network
        The network, which takes and returns NumPy arrays. ``fatnn_rs.load(hub_network.path)``
        returns it as a torch module.
    card
        Its card; None without.

    Raises
    ------
    FormatError, UnsupportedError, LimitError, OSError
        As :func:`fatnn_rs.load_numpy`.
    """

    path: Path
    network: NumpyNetwork
    card: Card | None

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.network = load_numpy(self.path)
        card = self.path.with_suffix(".json")
        self.card = read_card(card) if card.is_file() else None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network: see :meth:`fatnn_rs.numpy_network.NumpyNetwork.__call__`."""
        return self.network(*args, **kwargs)

    def classifier(self) -> Classifier:
        """Return the network with the names of its classes.

        Raises
        ------
        ConfigError
            It has no card.
        """
        if self.card is None:
            raise ConfigError(f"{self.path}: has no card, so the names of its classes are unknown")
        return Classifier(self.path, self.card)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Return the page of the repository, README.md."""
        about = "" if self.card is None else f"```\n{self.card}\n```\n"
        return ModelCard(
            f"---\n{self._hub_mixin_info.model_card_data.to_yaml()}\n---\n\n"
            f"A ternary neural network, run by fatnn-rs.\n\n{about}{_USAGE}"
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        folder = Path(save_directory)
        if (folder / _FILE).resolve() != self.path.resolve():
            shutil.copyfile(self.path, folder / _FILE)
        (folder / _CONFIG).write_text(json.dumps({"fatnn_rs": __version__}) + "\n")
        if self.card is not None:
            (folder / _CARD).write_text(self.card.to_json(), encoding="utf-8")

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> HubNetwork:
        if Path(model_id).is_dir():
            if not (Path(model_id) / _FILE).is_file():
                raise FormatError(f"{model_id}: expected {_FILE} there; save_pretrained writes it")
            return cls(Path(model_id) / _FILE)
        known = ("revision", "cache_dir", "force_download", "token", "local_files_only")
        download = {name: options[name] for name in known if options.get(name) is not None}
        path = hf_hub_download(model_id, _FILE, **download)
        # All files of a revision have the same folder.
        with contextlib.suppress(EntryNotFoundError, LocalEntryNotFoundError):
            hf_hub_download(model_id, _CARD, **download)
        return cls(path)
