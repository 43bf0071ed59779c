"""A finished directory to a repository of the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from dino_tower.errors import ConfigError


def check_repository(name: str) -> None:
    """Raise ConfigError for what cannot be OWNER/NAME on the Hub, before anything is written."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(f"--push-to-hub {name!r}: {' '.join(str(error).split())[:160]}") from None
    if name.count("/") != 1:
        raise ConfigError(f"--push-to-hub {name!r}: name the owner too: OWNER/NAME")


def push(folder: Path, repository: str, private: bool = False) -> str:
    """Create the repository if it is not there, upload every file of `folder` as one commit, return its address.

    The token is the one that `hf auth login` or HF_TOKEN gives. Raises ConfigError with the Hub's reason.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    api = HfApi(library_name="dino-tower")
    try:
        address = str(api.create_repo(repository, repo_type="model", private=private or None, exist_ok=True))
        api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="A vision tower, written by dino-tower"
        )
    except (HTTPError, OSError, RuntimeError, ValueError) as error:  # the Hub's, the network's, a failed part's
        reason = " ".join(str(error).split())[:240]
        raise ConfigError(
            f"--push-to-hub {repository}: {reason}; {folder} is written, so `hf upload {repository} {folder}` is enough"
        ) from None
    return address
