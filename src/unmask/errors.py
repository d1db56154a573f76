"""Errors for the user, one class per exit code. The message is one line: what, where, what to do."""


class UnmaskError(Exception):
    """Base of every error that the command line reports as one line and an exit code, without a traceback."""

    exit_code = 1


class ConfigError(UnmaskError):
    """A flag, a field or a combination of them cannot work."""

    exit_code = 2


class DataError(UnmaskError):
    """Input files are missing, damaged or not what they claim to be."""

    exit_code = 3


class CheckpointError(UnmaskError):
    """A checkpoint or export is damaged, foreign or of another architecture; or the run directory is in use."""

    exit_code = 4


class NonFiniteError(UnmaskError):
    """A loss or gradient became NaN or infinite. Raised before the optimizer step, so nothing bad was written."""

    exit_code = 5


class DiskError(UnmaskError):
    """The disk is full, read-only or failing; the last good checkpoint is untouched."""

    exit_code = 6


class Preempted(UnmaskError):
    """A signal asked the run to stop. A checkpoint was saved, and the same command resumes the run."""

    exit_code = 85
