"""The errors that an actor raises when it cannot go on.

    ActorError
        CheckpointError             the model cannot be loaded
            ConfigError             a key of a config file is missing or has an illegal value
            UnreadableFileError     a file is absent, truncated or not of its format
            MissingTensorError      no shard holds a tensor that the config calls for
            TensorMismatchError     a tensor has a wrong shape or dtype
            DownloadError           a model cannot be downloaded from the hub
        CapacityError               a setting does not fit the device or the model
        FrameError                  a peer sent bytes that are no message, or a message that is not allowed
        ExchangeError               rows and results cannot travel between dense and expert actors
            LinkError               a link or group is broken or closed, or an answer breaks the protocol
            DeadlineError           a peer did not answer within its deadline
            StaleEpochError         a membership is not newer than the current one
            ExpertFailedError       an expert actor received the rows and could not compute
            NoHolderError           rows waited too long for an actor that holds their experts
            NotReadyError           sequences waited too long until a step was possible

The errors cross processes, so every exception takes only positional, picklable values and passes all of them
to its base class. `str(error)` is the sentence for people.
"""

from __future__ import annotations


class ActorError(Exception):
    """Base class of all errors that an actor raises on purpose."""


class CheckpointError(ActorError):
    """The model cannot be loaded; trying again without a change will not help."""


class ConfigError(CheckpointError):
    """A key of a config file is missing or illegal. Names file, key, what was found and what was expected."""

    def __init__(self, file: str, key: str, found: str, expected: str) -> None:
        super().__init__(file, key, found, expected)
        self.file, self.key, self.found, self.expected = file, key, found, expected

    def __str__(self) -> str:
        return f"{self.file}: {self.key} is {self.found}, expected {self.expected}"


class UnreadableFileError(CheckpointError):
    """A file of the checkpoint cannot be read. Names the file and the reason."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(file, reason)
        self.file, self.reason = file, reason

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


class MissingTensorError(CheckpointError):
    """A tensor is missing from the index, or from the shard that the index names."""

    def __init__(self, file: str, tensor: str) -> None:
        super().__init__(file, tensor)
        self.file, self.tensor = file, tensor

    def __str__(self) -> str:
        return f"{self.file}: tensor {self.tensor} is missing"


class TensorMismatchError(CheckpointError):
    """A tensor has another shape or dtype than expected; `aspect` is "shape", "dtype" or "content"."""

    def __init__(self, file: str, tensor: str, aspect: str, found: str, expected: str) -> None:
        super().__init__(file, tensor, aspect, found, expected)
        self.file, self.tensor, self.aspect = file, tensor, aspect
        self.found, self.expected = found, expected

    def __str__(self) -> str:
        return f"{self.file}: tensor {self.tensor} has {self.aspect} {self.found}, expected {self.expected}"


class DownloadError(CheckpointError):
    """A model cannot be downloaded. Names the model, the reason and what the operator can do."""

    def __init__(self, model: str, reason: str, remedy: str) -> None:
        super().__init__(model, reason, remedy)
        self.model, self.reason, self.remedy = model, reason, remedy

    def __str__(self) -> str:
        return f"cannot get model {self.model!r}: {self.reason}; {self.remedy}"


class CapacityError(ActorError):
    """The model or the memory cannot meet a setting. Names the setting, its value and what was expected."""

    def __init__(self, setting: str, found: str, expected: str) -> None:
        super().__init__(setting, found, expected)
        self.setting, self.found, self.expected = setting, found, expected

    def __str__(self) -> str:
        return f"{self.setting} is {self.found}, expected {self.expected}"


class FrameError(ActorError):
    """A peer sent bytes that are no message of the protocol, or a message that is not allowed then."""


class ExchangeError(ActorError):
    """Rows or results did not get through; how much of the current layer the peers computed is unknown."""


class LinkError(ExchangeError):
    """A link broke. Names the peer at its other end, the layer (None outside a step) and what happened."""

    def __init__(self, peer: str, layer: int | None, reason: str) -> None:
        super().__init__(peer, layer, reason)
        self.peer, self.layer, self.reason = peer, layer, reason

    def __str__(self) -> str:
        return f"link to {self.peer}{_at_layer(self.layer)}: {self.reason}"


class DeadlineError(ExchangeError):
    """A peer did not answer in time.

    Names the peer, the layer (None outside a step), the awaited message and the deadline in seconds.
    """

    def __init__(self, peer: str, layer: int | None, awaited: str, seconds: float) -> None:
        super().__init__(peer, layer, awaited, seconds)
        self.peer, self.layer, self.awaited, self.seconds = peer, layer, awaited, seconds

    def __str__(self) -> str:
        return f"{self.peer}{_at_layer(self.layer)}: no {self.awaited} within {self.seconds:g} s"


class StaleEpochError(ExchangeError):
    """The epoch of a membership is not higher than that of the current membership."""

    def __init__(self, epoch: int, current: int) -> None:
        super().__init__(epoch, current)
        self.epoch, self.current = epoch, current

    def __str__(self) -> str:
        return f"membership of epoch {self.epoch} is stale, epoch {self.current} is in force"


class ExpertFailedError(ExchangeError):
    """An expert actor could not compute the rows that it received; `reason` is the text of its own error."""

    def __init__(self, peer: str, layer: int | None, reason: str) -> None:
        super().__init__(peer, layer, reason)
        self.peer, self.layer, self.reason = peer, layer, reason

    def __str__(self) -> str:
        return f"{self.peer}{_at_layer(self.layer)} failed: {self.reason}"


class NoHolderError(ExchangeError):
    """No linked actor held these experts for as long as rows may wait; other rows may get through."""

    def __init__(self, layer: int, experts: tuple[int, ...], seconds: float) -> None:
        super().__init__(layer, experts, seconds)
        self.layer, self.experts, self.seconds = layer, experts, seconds

    def __str__(self) -> str:
        names = ", ".join(str(expert) for expert in self.experts)
        return f"no expert actor with experts {names}{_at_layer(self.layer)} for {self.seconds:g} s"


class NotReadyError(ExchangeError):
    """Sequences waited for as long as they may: an expert had no holder, or there was no exchange."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds

    def __str__(self) -> str:
        return f"not linked to holders of all experts for {self.seconds:g} s"


def _at_layer(layer: int | None) -> str:
    return "" if layer is None else f" in layer {layer}"
