"""Certificates and checks as tables for a terminal: how they look, not how they came about."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from rich.table import Table

from amdim_export.artifact_check import Finding
from amdim_export.certificate import Certificate
from amdim_export.parity import Agreement
from amdim_export.precision import CertifiedPrecision


def certificate_report(title: str, certificate: Certificate) -> Iterator[Table | str]:
    """Yields a certificate in parts: a table of what was measured, a row per output, and notes."""
    yield _agreements(title, certificate.parity.outputs)
    if certificate.storage_loss is not None:
        yield _agreements(
            "What storing the weights as fp16 changed by itself", certificate.storage_loss
        )
    parity, lost = certificate.parity, certificate.storage_neighbor_agreement
    rounding = "" if lost is None else f" (after rounding the weights: {lost:.4f})"
    yield f"measured on   {certificate.source}; batches {_joined(parity.batches)}"
    yield f"neighbours    {parity.neighbor_agreement:.4f} of the nearest 10 agree{rounding}"
    yield f"weights       stored as {certificate.weights_stored}, run in {certificate.precision}"
    for one in certificate.precisions.values():
        yield _precision(one)
    yield f"embedding     {certificate.recipe or 'none: no pictures were given to fit it on'}"
    yield f"encoder       {certificate.encoder_digest}"
    yield f"preprocessing {certificate.preprocess_digest}"
    yield f"artifact      {certificate.artifact_digest}"


def _precision(one: CertifiedPrecision) -> str:
    if one.parity is None:
        return f"{one.precision:<13} not measured: left to the canaries where it is served"
    worst = min(one.parity.outputs.values(), key=lambda found: found.mean_cosine)
    speed = "" if one.speedup is None else f", {one.speedup:.1f} times as fast as fp32"
    verdict = "; ".join(one.missed()) or "reaches its targets"
    return (
        f"{one.precision:<13} in {one.engine}: mean cosine {worst.mean_cosine:.4f} or more, "
        f"{one.parity.neighbor_agreement:.3f} of the nearest 10 agree{speed}: {verdict}"
    )


def findings_table(findings: Iterable[Finding]) -> Table:
    """Returns what a check found, a row per thing checked."""
    table = Table(title_justify="left")
    table.add_column("artifact", no_wrap=True)
    table.add_column("checked")
    table.add_column("result")
    for finding in findings:
        version = f" {finding.version}" if finding.version else ""
        table.add_row(finding.model + version, finding.what, _result(finding))
    return table


def versions_table(rows: Iterable[tuple[str, str, str, Certificate | str]]) -> Table:
    """Returns a repository's versions; rows of model, version, state, certificate or why not."""
    table = Table()
    table.add_column("artifact", no_wrap=True)
    for name in ("state", "weights", "encoder", "file", "min cosine"):
        table.add_column(name)
    for model, version, state, certificate in rows:
        if isinstance(certificate, str):
            table.add_row(f"{model} {version}", state, "", "", "", certificate)
            continue
        worst = min(found.min_cosine for found in certificate.parity.outputs.values())
        table.add_row(
            f"{model} {version}",
            state,
            f"{certificate.weights_stored}, run {certificate.precision}",
            _short(certificate.encoder_digest),
            _short(certificate.artifact_digest),
            f"{worst:.7f}",
        )
    return table


def _agreements(title: str, outputs: Mapping[str, Agreement]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("output")
    for name in ("max error", "of largest", "mean cosine", "p1 cosine", "min cosine"):
        table.add_column(name, justify="right")
    for name, found in outputs.items():
        table.add_row(
            name,
            f"{found.max_abs_error:.2e}",
            f"{found.relative_error:.2e}",
            f"{found.mean_cosine:.7f}",
            f"{found.p1_cosine:.7f}",
            f"{found.min_cosine:.7f}",
        )
    return table


def _result(finding: Finding) -> str:
    if not finding.holds:
        return f"[bold red]FAILS[/]: {finding.problem}"
    if finding.unmeasured:
        return f"[bold yellow]not measured[/]: {finding.unmeasured}"
    if not finding.outputs:
        return "holds"
    worst = min(found.min_cosine for found in finding.outputs.values())
    largest = max(found.relative_error for found in finding.outputs.values())
    return f"holds: error {largest:.1e}, cosine {worst:.7f}, {finding.seconds:.1f} s"


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:8]


def _joined(sizes: Iterable[int]) -> str:
    return ", ".join(map(str, sizes))
