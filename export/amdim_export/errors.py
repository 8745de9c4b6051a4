"""The export package's errors.

ExportError
|-- ParityError        an artifact's vectors differ from the encoder's by more than it may
|-- GraphError         the exported graph is not what was asked for
|-- RepositoryError    a model repository cannot be read or a version cannot be published
|-- EngineError        a TensorRT engine cannot be built here, or was built for another machine
|-- UnavailableError   what runs an artifact is not on this machine, so nothing is known of it
|-- PicturesError      pictures to fit or to measure on cannot be read
`-- CertificateError   a certificate is missing, broken or of another format
"""

from __future__ import annotations


class ExportError(Exception):
    """Base of everything this package raises on purpose; its text is fit to show a user."""

    exit_code: int = 1
    is_user_error = True


class ParityError(ExportError):
    """An artifact's vectors differ from the encoder's by more than it may."""


class GraphError(ExportError):
    """The exported graph is not what was asked for."""


class RepositoryError(ExportError):
    """A model repository cannot be read or a version cannot be published."""


class EngineError(ExportError):
    """A TensorRT engine cannot be built here, or was built for another machine."""


class UnavailableError(ExportError):
    """What runs an artifact is not on this machine, so nothing is known of it."""


class PicturesError(ExportError):
    """Pictures to fit or to measure on cannot be read."""


class CertificateError(ExportError):
    """A certificate is missing, broken or of another format."""
