"""What a rank can say when it cannot go on.

    ActorError
        CheckpointError             the model cannot be loaded
            ConfigError             a key of a config file is missing or has an illegal value
            UnreadableFileError     a file is absent, truncated or not of its format
            MissingTensorError      no shard holds a tensor that the config calls for
            TensorMismatchError     a tensor has another shape or dtype than it must have
            DownloadError           a model cannot be had from the hub
        CapacityError               what was asked for does not fit the device or the model
        FrameError                  a peer sends what is no message, or not its turn
        ExchangeError               rows and results cannot travel between dense and expert actors
            LinkError               a link or group is broken, closed or answers what it must not
            DeadlineError           a peer is silent for longer than it may be
            StaleEpochError         a membership is not newer than the one in force
            ExpertFailedError       an expert actor got the rows and could not compute
            NoHolderError           rows waited in vain for an actor that holds their experts
            NotReadyError           sequences waited in vain for a step to be possible

They cross processes, so every exception takes positional values only, all of them picklable, and hands all of them
to its base class. The sentence for people is `str(error)`.
"""

from __future__ import annotations


class ActorError(Exception):
    """Root of everything that a rank raises on purpose."""


class CheckpointError(ActorError):
    """The model cannot be loaded; trying again without a change will not help."""


class ConfigError(CheckpointError):
    """A key of a config file: which file, which key, what was found there and what was expected."""

    def __init__(self, file: str, key: str, found: str, expected: str) -> None:
        super().__init__(file, key, found, expected)
        self.file, self.key, self.found, self.expected = file, key, found, expected

    def __str__(self) -> str:
        return f"{self.file}: {self.key} is {self.found}, expected {self.expected}"


class UnreadableFileError(CheckpointError):
    """A file of the checkpoint: which one and why it cannot be read."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(file, reason)
        self.file, self.reason = file, reason

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


class MissingTensorError(CheckpointError):
    """A tensor that should be in a file (the index, or the shard that the index names) and is not."""

    def __init__(self, file: str, tensor: str) -> None:
        super().__init__(file, tensor)
        self.file, self.tensor = file, tensor

    def __str__(self) -> str:
        return f"{self.file}: tensor {self.tensor} is missing"


class TensorMismatchError(CheckpointError):
    """A tensor that is there but has another shape or dtype; `aspect` says which of the two."""

    def __init__(self, file: str, tensor: str, aspect: str, found: str, expected: str) -> None:
        super().__init__(file, tensor, aspect, found, expected)
        self.file, self.tensor, self.aspect = file, tensor, aspect
        self.found, self.expected = found, expected

    def __str__(self) -> str:
        return f"{self.file}: tensor {self.tensor} has {self.aspect} {self.found}, expected {self.expected}"


class DownloadError(CheckpointError):
    """A model of the hub: its name, why it cannot be had and what the operator can do."""

    def __init__(self, model: str, reason: str, remedy: str) -> None:
        super().__init__(model, reason, remedy)
        self.model, self.reason, self.remedy = model, reason, remedy

    def __str__(self) -> str:
        return f"cannot get model {self.model!r}: {self.reason}; {self.remedy}"


class CapacityError(ActorError):
    """A setting that the model or the memory cannot meet: which one, its value and what was expected."""

    def __init__(self, setting: str, found: str, expected: str) -> None:
        super().__init__(setting, found, expected)
        self.setting, self.found, self.expected = setting, found, expected

    def __str__(self) -> str:
        return f"{self.setting} is {self.found}, expected {self.expected}"


class FrameError(ActorError):
    """A peer sent bytes that are no message of the protocol, or a message that does not belong there."""


class ExchangeError(ActorError):
    """Rows or results did not get through; what the peers computed of the layer under way is unknown."""


class LinkError(ExchangeError):
    """A link broke: who was at its other end, in which layer (None outside a step) and what happened."""

    def __init__(self, peer: str, layer: int | None, reason: str) -> None:
        super().__init__(peer, layer, reason)
        self.peer, self.layer, self.reason = peer, layer, reason

    def __str__(self) -> str:
        return f"link to {self.peer}{_at_layer(self.layer)}: {self.reason}"


class DeadlineError(ExchangeError):
    """A peer kept silent: who, in which layer (None outside a step), what it owed and how long it had."""

    def __init__(self, peer: str, layer: int | None, awaited: str, seconds: float) -> None:
        super().__init__(peer, layer, awaited, seconds)
        self.peer, self.layer, self.awaited, self.seconds = peer, layer, awaited, seconds

    def __str__(self) -> str:
        return f"{self.peer}{_at_layer(self.layer)}: no {self.awaited} within {self.seconds:g} s"


class StaleEpochError(ExchangeError):
    """A membership whose epoch is not higher than the one that is in force."""

    def __init__(self, epoch: int, current: int) -> None:
        super().__init__(epoch, current)
        self.epoch, self.current = epoch, current

    def __str__(self) -> str:
        return f"membership of epoch {self.epoch} is stale, epoch {self.current} is in force"


class ExpertFailedError(ExchangeError):
    """An expert actor could not compute what it was sent; its own words."""

    def __init__(self, peer: str, layer: int | None, reason: str) -> None:
        super().__init__(peer, layer, reason)
        self.peer, self.layer, self.reason = peer, layer, reason

    def __str__(self) -> str:
        return f"{self.peer}{_at_layer(self.layer)} failed: {self.reason}"


class NoHolderError(ExchangeError):
    """Nobody who holds these experts was linked for as long as rows may wait; other rows may well get through."""

    def __init__(self, layer: int, experts: tuple[int, ...], seconds: float) -> None:
        super().__init__(layer, experts, seconds)
        self.layer, self.experts, self.seconds = layer, experts, seconds

    def __str__(self) -> str:
        names = ", ".join(str(expert) for expert in self.experts)
        return f"no expert actor with experts {names}{_at_layer(self.layer)} for {self.seconds:g} s"


class NotReadyError(ExchangeError):
    """Between two steps some expert had no holder, or there was no exchange at all, for as long as sequences may wait."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds

    def __str__(self) -> str:
        return f"not linked to holders of all experts for {self.seconds:g} s"


def _at_layer(layer: int | None) -> str:
    return "" if layer is None else f" in layer {layer}"
