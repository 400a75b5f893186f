"""fmprobe models: the families that can be loaded."""

import typer


def models() -> list[dict[str, str]]:
    """List the families of models that can be loaded by name.

    Example: fmprobe models --json
    """
    from fmprobe.loading import adapters

    rows = [("family", "example", "latents", "decoder", "needs")]
    for family, adapter in adapters().items():
        needs = f'pip install "fmprobe[{adapter.requires}]"' if adapter.requires else "-"
        rows.append((family, adapter.example, adapter.latents, adapter.decoder, needs))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
