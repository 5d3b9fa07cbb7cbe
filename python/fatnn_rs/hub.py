"""Networks on the Hugging Face hub: :class:`HubNetwork`. Needs ``pip install "fatnn-rs[hub]"``.

A repository holds ``net.safetensors``, as :func:`fatnn_rs.save` writes it, and, if there is one,
the card ``net.json``. Torch is not needed.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from fatnn_rs.card import Card, card_file, card_of
from fatnn_rs.errors import ConfigError, FormatError, InputError, UnsupportedError
from fatnn_rs.numpy_network import NumpyNetwork, load_numpy
from fatnn_rs.zoo import Classifier

try:
    from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
except ImportError as error:
    raise UnsupportedError(
        f"fatnn_rs.hub needs huggingface_hub ({error}): pip install huggingface_hub"
    ) from error

__all__ = ["HubNetwork"]

_FILE, _CARD, _PAGE = "net.safetensors", "net.json", "README.md"
_OPTIONS = ("revision", "cache_dir", "force_download", "token", "local_files_only")
_MARK = "A ternary neural network, run by fatnn-rs.\n"
_USAGE = """
    from fatnn_rs.hub import HubNetwork
    network = HubNetwork.from_pretrained("NAME OF THIS REPOSITORY")
    outputs = network(images)  # NumPy, float32
"""
_CLASSIFY = """    network.classifier().classify("picture.png")  # names and probabilities
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
    FormatError
        The file is no network, or the file next to it no card.
    UnsupportedError, LimitError, OSError
        As :func:`fatnn_rs.load_numpy`.
    """

    path: Path
    network: NumpyNetwork
    card: Card | None

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.network = load_numpy(self.path)
        self.card = card_of(self.path)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network: see :meth:`fatnn_rs.numpy_network.NumpyNetwork.__call__`."""
        return self.network(*args, **kwargs)

    def classifier(self) -> Classifier:
        """Return the network with the names of its classes.

        Raises
        ------
        ConfigError
            It has no card.
        InputError
            Card and network do not fit each other.
        """
        if self.card is None:
            raise ConfigError(
                f"{self.path}: has no card, so the names of its classes are unknown; put one next "
                f"to it, {card_file(self.path).name}"
            )
        return Classifier(self.network, self.card)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the file's name."""
        return type(self), (self.path,)

    def __repr__(self) -> str:
        return f"HubNetwork({self.path.name}; {self.network!r})"

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Return the page of the repository, README.md."""
        about = "" if self.card is None else f"\n```\n{self.card}\n```\n"
        usage = _USAGE if self.card is None else _USAGE + _CLASSIFY
        return ModelCard(
            f"---\n{self._hub_mixin_info.model_card_data.to_yaml()}\n---\n\n{_MARK}{about}{usage}"
        )

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the network; a card of an earlier network is removed if this one has none.

        See :meth:`huggingface_hub.ModelHubMixin.push_to_hub`.
        """
        if self.card is None:
            options.setdefault("delete_patterns", [_CARD])
        return str(super().push_to_hub(repo_id, **options))

    def _save_pretrained(self, save_directory: Path) -> None:
        folder = Path(save_directory)
        if (folder / _FILE).resolve() != self.path.resolve():
            shutil.copyfile(self.path, folder / _FILE)
        # Nothing may be left of another network.
        if self.card is None:
            (folder / _CARD).unlink(missing_ok=True)
        else:
            self.card.write(folder / _CARD)
        page = folder / _PAGE
        if page.is_file() and _MARK in page.read_text(encoding="utf-8", errors="replace"):
            page.unlink()  # The mixin writes it again.

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **options: Any
    ) -> HubNetwork:
        """Load a network from a directory or from the hub.

        Parameters
        ----------
        pretrained_model_name_or_path
            A directory that ``save_pretrained`` wrote, or the name of a repository.
        **options
            For the hub: ``revision``, ``cache_dir``, ``force_download``, ``token`` and
            ``local_files_only``, as in :func:`huggingface_hub.hf_hub_download`.

        Raises
        ------
        ConfigError
            An option is unknown.
        InputError
            There is no such directory or repository, or the hub cannot be reached.
        FormatError, UnsupportedError, LimitError, OSError
            As :func:`fatnn_rs.load_numpy`.
        """
        for name in options.keys() - set(_OPTIONS):
            raise ConfigError(
                f"from_pretrained: {name} is unknown; known are {', '.join(_OPTIONS)}"
            )
        source = str(pretrained_model_name_or_path)
        if source and Path(source).is_dir():
            if not (Path(source) / _FILE).is_file():
                raise FormatError(f"{source}: expected {_FILE} there; save_pretrained writes it")
            return cls(Path(source) / _FILE)
        try:
            path = hf_hub_download(source, _FILE, **options)
            _download_card(source, options)
        except (
            EntryNotFoundError,
            HFValidationError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        ) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"{source!r} is no directory here, and {_FILE} of such a repository cannot be "
                f"fetched: {reason:.300}"
            ) from error
        return cls(path)


def _download_card(repository: str, options: dict[str, Any]) -> None:
    """Download the card, if the repository has one, next to the network."""
    try:
        hf_hub_download(repository, _CARD, **options)
    except LocalEntryNotFoundError:  # The hub cannot be reached.
        where = {name: options[name] for name in ("cache_dir", "revision") if name in options}
        cached = try_to_load_from_cache(repository, _CARD, **where)
        if cached is None:  # Neither in the cache nor known to be absent.
            raise
    except EntryNotFoundError:
        pass
