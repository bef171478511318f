"""List the models that --model knows by name."""

from __future__ import annotations

from typing import Annotated

import typer


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON (md.models/1).")] = False,
) -> None:
    """List the models that `--model` knows by name: those in the folders of MD_MODELS, then the embedded ones."""
    import json

    from mdcli.errors import MdError
    from mdcli.inference.formats import Opening, find_model
    from mdcli.model_folders import converted_folder, model_folders

    rows: list[dict[str, str]] = []
    for folder in model_folders():
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            try:
                model = find_model(str(path), (), Opening(cache=converted_folder(), engine=""))
                row = {
                    "name": path.name,
                    "version": model.card.version,
                    "description": model.card.description,
                    "sha256": model.sha256,
                }
            except MdError as error:
                if error.code == "no-model":
                    continue
                row = {"name": path.name, "version": "", "description": f"unusable: {error}", "sha256": ""}
            if path.name not in {known["name"] for known in rows}:
                rows.append(row)
    if as_json:
        print(json.dumps({"schema": "md.models/1", "models": rows}, indent=1))
        return
    for row in rows:
        print(f"{row['name']:<16} {row['version']:<8} {row['description']}")
