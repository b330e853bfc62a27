"""The versions of one registered model in MLflow, their aliases, and the lock that a change of them takes."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models.model import ModelInfo

from rl4rec.errors import UserError

CHAMPION, CANDIDATE = "champion", "candidate"
REPLACED, REASON = "rl4rec.replaced", "rl4rec.decision"
WEIGHTS, DATA, FEEDBACK = "rl4rec.weights", "rl4rec.data_hash", "rl4rec.feedback"
_LOCK_SECONDS = 3600.0  # a promotion takes minutes: an older lock is of one that died


class Registry:
    """The versions of one registered model."""

    def __init__(self, client: MlflowClient, name: str) -> None:
        self._client, self._name = client, name

    def version(self, alias: str) -> ModelVersion | None:
        """The version that an alias names, or None."""
        try:
            return self._client.get_model_version_by_alias(self._name, alias)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None  # no such model, or no such alias
            raise

    def add(self, model: ModelInfo, run_id: str, tags: dict[str, str]) -> ModelVersion:
        """Register a logged model as the newest version, and as the candidate."""
        try:
            self._client.create_registered_model(self._name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = self._client.create_model_version(
            self._name, source=model.model_uri, run_id=run_id, model_id=model.model_id, tags=tags
        )
        self._client.set_registered_model_alias(self._name, CANDIDATE, version.version)
        return version

    def crown(self, version: ModelVersion, *, replaced: str | None) -> None:
        """Make a version the champion, and remember to which one `roll_back` goes."""
        if replaced is not None:
            self.tag(version, REPLACED, replaced)
        self._client.set_registered_model_alias(self._name, CHAMPION, version.version)

    def tag(self, version: ModelVersion, key: str, value: str) -> None:
        """Tag a version."""
        self._client.set_model_version_tag(self._name, str(version.version), key, value)

    def roll_back(self) -> tuple[str, str]:
        """Give the alias back to the version that the champion replaced; (from, to).

        Raises:
            UserError: there is no champion, or it replaced nothing.
        """
        champion = self.version(CHAMPION)
        if champion is None:
            raise UserError(f"{self._name}: there is no champion to roll back. `rl4rec promote` makes one")
        earlier = champion.tags.get(REPLACED)
        if earlier is None:
            raise UserError(
                f"{self._name}: version {champion.version} is the first champion, there is no earlier one. "
                "`rl4rec promote --policy` can put another in its place"
            )
        self._client.set_registered_model_alias(self._name, CHAMPION, earlier)
        self.tag(champion, "rl4rec.rolled_back", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        return str(champion.version), earlier

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the only right to change the aliases.

        Raises:
            UserError: somebody else holds it.
        """
        name = f"{self._name}.promotion-lock"
        owner = f"{socket.gethostname()} process {os.getpid()}"
        for _ in range(5):
            try:
                self._client.create_registered_model(name, tags={"owner": owner, "since": f"{time.time():.0f}"})
                break
            except MlflowException as error:
                # The second: it was there, and was given back while MLflow looked at it.
                if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
                    raise
                self._clear_if_stale(name)
        else:
            raise UserError(f"promotions of {self._name} are under way again and again. Try later")
        try:
            yield
        finally:
            self._client.delete_registered_model(name)

    def _clear_if_stale(self, name: str) -> None:
        try:
            tags = self._client.get_registered_model(name).tags
        except MlflowException:
            return  # given back in between
        age = time.time() - float(tags.get("since", 0))
        if age < _LOCK_SECONDS:
            raise UserError(
                f"another promotion of {self._name} is under way ({tags.get('owner', 'unknown')}, for {age:.0f} s). "
                f"Try again when it is done; if it died, remove the registered model '{name}' in the MLflow UI"
            )
        self._client.delete_registered_model(name)
