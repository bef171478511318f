"""Read a result folder of nnU-Net v2 into a card: plans.json, dataset.json, the folds, postprocessing.json.

What nnU-Net's own predictor would do is said in the card's words; what they have no word for is refused by name
(`unsupported-nnunet`). A fold is `fold_N/checkpoint_final.pth`, converted to ONNX once by a child process that has torch, or
`fold_N/network.onnx` with `network.json` beside it, which needs no torch. No pickle is read here.

Source: nnunetv2 2.8.1: inference.predict_from_raw_data, inference.export_prediction, utilities.plans_handling,
utilities.label_handling, postprocessing.remove_connected_components.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdcli.errors import ConfigError, MissingError
from mdcli.inference.card import (
    Bound,
    Card,
    Clip,
    Crop,
    Input,
    Output,
    Window,
    completed,
)
from mdcli.inference.formats import ModelFolder, Opening, digest_of, inside, sha256_of
from mdcli.inference.formats.nnunet_plans import (
    DATASET,
    PLANS,
    Configuration,
    Labels,
    bad,
    channels_of,
    definition_of,
    document_of,
    labels_of,
    list_of,
    quoted,
    refuse,
    roles_of,
    steps_of,
    values_of,
)
from mdcli.inference.formats.torchfile import to_onnx
from mdcli.inference.naming import one_line, slug
from mdcli.inference.onnxfile import external_files
from mdcli.inference.steps_after import KeepLargest

POSTPROCESSING = "postprocessing.json"
CHECKPOINT, NETWORK, FACTS = "checkpoint_final.pth", "network.onnx", "network.json"
FACTS_SCHEMA = "md.nnunet-fold/1"

_HU = "HU"
_REORIENTING = ("SimpleITKIOWithReorient", "NibabelIOWithReorient")
_AS_THEY_ARE = ("SimpleITKIO", "NibabelIO")
# Trainers that build another network than the plans say.
_OTHER_NETWORKS = re.compile(r"(?i).*primus.*|.*nnUNetTrainerBN.*")
_KNOWN_TRAINERS = re.compile(
    r"nnUNetTrainer(_?(\d+epochs?|NoMirroring|onlyMirror01|1500ep|DASegOrd0|DA5|ord0|Segord0|NoDA|noDummy2DDA|NoDeepSupervision"
    r"|CELoss|DiceLoss|DiceCELoss_noSmooth|DiceTopK10Loss|Topk10Loss|Topk10LossLS01|CosAnneal|warmup|probabilisticOversampling"
    r"|010|033|Adam|VanillaAdam|Adan|AdanCosAnneal|1en3|3en4|1en1|Benchmark|noDataLoading))*|nnUNet_Trainer_BS8"
)


@dataclass(frozen=True)
class _Fold:
    """One fold: its network, and what its checkpoint says beside the weights."""

    network: Path
    files: tuple[Path, ...]
    facts: Mapping[str, Any]
    notes: tuple[tuple[str, str], ...] = ()


class NnUNet:
    """Reads a folder `Trainer__Plans__configuration`, or its plans.json."""

    name = "nnunet"

    def recognises(self, path: Path) -> bool:
        """Say whether there are plans, a data set's description and a fold. See `Format.recognises`."""
        folder = _folder(path)
        return (folder / PLANS).is_file() and (folder / DATASET).is_file() and bool(_fold_names(folder))

    def read(self, path: Path, opening: Opening) -> ModelFolder:
        """Return the model. See `Format.read`.

        Raises:
            ConfigError: `bad-nnunet` where a file does not say what it must; `unsupported-nnunet` for what is not reproduced;
                `orientation-unknown`; and those of `torchfile.to_onnx`.
            MissingError: `no-network`.
        """
        folder = _folder(path)
        said = [inside(folder, name, folder.name) for name in (PLANS, DATASET)]
        plans, dataset = (document_of(each) for each in said)
        names = _fold_names(folder)
        if not names:
            raise MissingError("no-network", f"{folder.name} has no fold with {CHECKPOINT} or {NETWORK}")
        facts = _facts(folder / names[0] / FACTS)
        configuration = Configuration.of(folder, plans, facts)
        labels = labels_of(dataset, plans)
        channels = channels_of(dataset)
        after, after_files, after_notes = _postprocessing(folder, names, labels)
        # What may be refused is refused before a conversion, which takes minutes.
        inputs = _inputs(plans, configuration, channels, _orientation(plans, facts or {}, opening))
        folds = [_fold(folder, name, configuration, len(channels), labels.heads, opening) for name in names]
        _check_folds(folds, names, configuration)
        card = _card(folder, plans, dataset, configuration, labels, inputs, names, folds, after)
        files = [*said, *after_files, *(file for fold in folds for file in fold.files)]
        notes = (*labels.notes, *after_notes, *(note for fold in folds for note in fold.notes), *_trainer_notes(folds))
        return ModelFolder(
            card, tuple(fold.network for fold in folds), digest_of(folder, files), tuple(dict.fromkeys(notes)), folder
        )


def export_folds(path: Path, out: Path, opening: Opening) -> tuple[Path, ...]:
    """Write a folder that holds the folds as ONNX and needs no torch.

    Args:
        path: a result folder.
        out: the folder to make; it must not be there yet.
        opening: needs a cache. A given orientation is written down, so that it need not be said again.

    Returns:
        The files written.

    Raises:
        ConfigError, MissingError: as `NnUNet.read`; `would-replace` where `out` is there.
    """
    folder = _folder(path)
    model = NnUNet().read(folder, opening)
    if out.exists():
        raise ConfigError("would-replace", f"{out.name} is there already")
    configuration = Configuration.of(
        folder, document_of(folder / PLANS), _facts(folder / _fold_names(folder)[0] / FACTS)
    )
    written = []
    for name in (PLANS, DATASET):
        written.append(_copied(folder / name, out / name))
    if (said := _postprocessing_file(folder, _fold_names(folder))) is not None:
        written.append(_copied(said, out / POSTPROCESSING))
    mirrored = [_place(configuration, axis) for axis in model.card.mirror]
    for name, network in zip(_fold_names(folder), model.networks, strict=True):
        assert isinstance(network, Path)
        written.append(_copied(network, out / name / NETWORK))
        written += [_copied(network.parent / each, out / name / each) for each in sorted(external_files(network))]
        checkpoint = folder / name / CHECKPOINT
        document = {
            "schema": FACTS_SCHEMA,
            "configuration": configuration.name,
            "trainer_name": configuration.trainer,
            "inference_allowed_mirroring_axes": mirrored,
            "orientation": model.card.input.orientation,
            "checkpoint_sha256": sha256_of(checkpoint) if checkpoint.is_file() else None,
        }
        target = out / name / FACTS
        target.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        written.append(target)
    return tuple(written)


def _copied(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return target


def _folder(path: Path) -> Path:
    return path.parent if path.name == PLANS and path.is_file() else path


def _fold_names(folder: Path) -> list[str]:
    """Return the folds that are there, as nnU-Net finds them: those with a number; `fold_all` where it is alone."""
    found = (
        [path.name for path in folder.iterdir() if re.fullmatch(r"fold_(\d{1,3}|all)", path.name)]
        if folder.is_dir()
        else []
    )
    found = [name for name in found if any((folder / name / file).is_file() for file in (CHECKPOINT, NETWORK))]
    numbered = sorted((name for name in found if name != "fold_all"), key=lambda name: int(name[5:]))
    return numbered or found


def _facts(path: Path) -> dict[str, Any] | None:
    """Return what stands beside an exported fold, or None."""
    if not path.is_file():
        return None
    document = document_of(path)
    if document.get("schema") != FACTS_SCHEMA:
        bad(path.name, f"schema is {quoted(document.get('schema'))}, not {FACTS_SCHEMA!r}")
    return document


def _place(configuration: Configuration, axis: str) -> int:
    return configuration.axes.index(axis)


def _orientation(plans: Mapping[str, Any], facts: Mapping[str, Any], opening: Opening) -> str:
    """Return the letters of the arrays that the network was trained on. nnU-Net's default readers ignore direction."""
    reader = plans.get("image_reader_writer")
    if reader in _REORIENTING:
        if opening.orientation not in (None, "RAS"):
            message = (
                f"{PLANS}: image_reader_writer is {reader}, which turns every volume to RAS, not {opening.orientation}"
            )
            raise ConfigError("orientation-conflict", message, hint="leave --orientation out")
        return "RAS"
    if reader not in _AS_THEY_ARE:
        refuse(f"{PLANS}: image_reader_writer", f"{quoted(reader)}, which reads no volume of a patient")
    letters = opening.orientation or facts.get("orientation")
    if letters is None:
        raise ConfigError(
            "orientation-unknown",
            f"{PLANS}: image_reader_writer is {reader}, which ignores direction, and nothing says how the volumes lay that the "
            "network was trained on",
            hint="--orientation RAS (or LPS ...): where i, j, k of the training images grow to, as nib.aff2axcodes says",
        )
    pairs = {"R": "x", "L": "x", "A": "y", "P": "y", "S": "z", "I": "z"}
    if not isinstance(letters, str) or sorted(pairs.get(letter, "") for letter in letters) != ["x", "y", "z"]:
        message = f"{quoted(letters)} where one each of R/L, A/P, S/I is wanted, such as RAS"
        raise ConfigError("orientation-unknown", message, hint="--orientation RAS")
    return letters


def _fold(folder: Path, name: str, configuration: Configuration, channels: int, heads: int, opening: Opening) -> _Fold:
    """Return a fold's ONNX network: that beside the checkpoint if it was made from it, else one that is made now, once."""
    checkpoint = folder / name / CHECKPOINT
    facts = _facts(folder / name / FACTS) if (folder / name / NETWORK).is_file() else None
    has_checkpoint = checkpoint.is_file()
    if facts is not None and (not has_checkpoint or facts.get("checkpoint_sha256") == sha256_of(checkpoint)):
        network = inside(folder, f"{name}/{NETWORK}", f"{name}")
        weights = [inside(network.parent, each, network.name, folder) for each in sorted(external_files(network))]
        return _Fold(network, (network, inside(folder, f"{name}/{FACTS}", name), *weights), facts)
    if not has_checkpoint:
        raise MissingError("no-network", f"{name} has {NETWORK} without {FACTS}, which says how it was trained")
    checkpoint = inside(folder, f"{name}/{CHECKPOINT}", name)
    _check_trainer(configuration.trainer)
    definition = definition_of(configuration, channels, heads)
    if opening.cache is None:
        message = f"{name}/{CHECKPOINT} has to be converted to ONNX, and there is no folder for that"
        raise MissingError("no-network", message)
    converted = to_onnx(
        checkpoint,
        cache=opening.cache,
        trust=opening.trust,
        input_shape=(1, channels, *configuration.patch),
        network=definition,
        state_key="network_weights",
    )
    said = converted.facts.get("checkpoint")
    if not isinstance(said, dict):
        bad(f"{name}/{CHECKPOINT}", "it says nothing beside its weights")
    return _Fold(converted.path, (checkpoint,), said, tuple(converted.notes))


def _check_trainer(trainer: Any) -> None:
    if trainer is not None and _OTHER_NETWORKS.fullmatch(str(trainer)):
        refuse("trainer", f"{quoted(trainer)} builds another network than the plans say")


def _check_folds(folds: Sequence[_Fold], names: Sequence[str], configuration: Configuration) -> None:
    """Refuse folds that were trained as something else, or unlike one another."""
    for fold, name in zip(folds, names, strict=True):
        _check_trainer(fold.facts.get("trainer_name"))
        trained = fold.facts.get("configuration", (fold.facts.get("init_args") or {}).get("configuration"))
        if trained is not None and trained != configuration.name:
            bad(name, f"it was trained as {quoted(trained)}, the folder is {configuration.name}")
        if _mirrored(fold, configuration) != _mirrored(folds[0], configuration):
            bad(name, f"it allows other mirroring than {names[0]}")


def _mirrored(fold: _Fold, configuration: Configuration) -> tuple[Any, ...]:
    said = fold.facts.get("inference_allowed_mirroring_axes")
    if said is None:
        return ()
    places = list_of(list(said) if isinstance(said, (list, tuple)) else said, int, "inference_allowed_mirroring_axes")
    if any(not 0 <= place < len(configuration.axes) for place in places) or len(set(places)) < len(places):
        bad("inference_allowed_mirroring_axes", f"{quoted(places)} of {len(configuration.axes)} axes")
    return tuple(configuration.axes[place] for place in sorted(places))


def _trainer_notes(folds: Sequence[_Fold]) -> list[tuple[str, str]]:
    trainers = {str(fold.facts.get("trainer_name")) for fold in folds if fold.facts.get("trainer_name")}
    return [
        (
            "unknown-trainer",
            f"trainer {quoted(name)} is none of nnU-Net's own: its network is taken to be that of the plans",
        )
        for name in sorted(trainers)
        if not _KNOWN_TRAINERS.fullmatch(name)
    ]


def _postprocessing_file(folder: Path, folds: Sequence[str]) -> Path | None:
    """Return postprocessing.json: beside the plans, else where `find_best_configuration` leaves it for just these folds."""
    results = f"crossval_results_folds_{'_'.join(name[5:] for name in folds)}"
    places = (folder / POSTPROCESSING, folder / results / POSTPROCESSING)
    return next((place for place in places if place.is_file()), None)


def _postprocessing(
    folder: Path, folds: Sequence[str], labels: Labels
) -> tuple[tuple[KeepLargest, ...], list[Path], list[tuple[str, str]]]:
    path = _postprocessing_file(folder, folds)
    if path is None:
        pickled = [*folder.glob("postprocessing.pkl"), *folder.glob("crossval_results_folds_*/postprocessing.pkl")]
        message = f"{POSTPROCESSING} is not there for these folds, and postprocessing.pkl is a pickle, which is not read: no step"
        return (), [], [("no-postprocessing", message)] if pickled else []
    document = document_of(path)
    names = list_of(document.get("postprocessing_fns"), str, f"{path.name}: postprocessing_fns")
    arguments = list_of(document.get("postprocessing_kwargs"), dict, f"{path.name}: postprocessing_kwargs", len(names))
    steps = []
    for name, said in zip(names, arguments, strict=True):
        if name != "remove_all_but_largest_component_from_segmentation":
            refuse(f"{path.name}: postprocessing_fns", quoted(name))
        if set(said) - {"labels_or_regions", "background_label"} or said.get("background_label", 0) != 0:
            refuse(f"{path.name}: postprocessing_kwargs", quoted(said))
        values = sorted(set(values_of(said.get("labels_or_regions"), f"{path.name}: labels_or_regions")))
        if unknown := [value for value in values if value not in labels.value_of]:
            # A region's value that no channel writes is in no label map.
            values = [value for value in values if value not in unknown]
        ours = tuple(labels.value_of[value] for value in values if value > 0)
        if ours:
            steps.append(KeepLargest(ours, together=True, connectivity=3))
    return tuple(steps), [inside(folder, path.relative_to(folder).as_posix(), path.name)], []


def _inputs(
    plans: Mapping[str, Any], configuration: Configuration, channels: Sequence[str], orientation: str
) -> tuple[Input, ...]:
    """Return the card's inputs, one a channel."""
    found = []
    for n, role in enumerate(roles_of(channels)):
        steps = steps_of(configuration, plans, n)
        found.append(
            Input(
                axes=("C", *configuration.axes),
                orientation=orientation,
                spacing=configuration.spacing,
                # nnU-Net clips to fixed values for CT alone.
                unit=_HU if any(isinstance(step, Clip) for step in steps) else "arbitrary",
                role=role,
                padding="include",
                intensity_before=steps,
                rule="edges",
                interpolation="cubic",
                separate_z=configuration.separate,
                crop=Crop(),
            )
        )
    return tuple(found)


def _card(
    folder: Path,
    plans: Mapping[str, Any],
    dataset: Mapping[str, Any],
    configuration: Configuration,
    labels: Labels,
    inputs: tuple[Input, ...],
    names: Sequence[str],
    folds: Sequence[_Fold],
    after: tuple[KeepLargest, ...],
) -> Card:
    is_ct = all(said.unit == _HU for said in inputs)
    output = Output(
        axes=inputs[0].axes,
        activation="sigmoid" if labels.order else "none",
        inversion="logits",
        form="regions" if labels.order else "labels",
        regions_order=labels.order,
        after=after,
    )
    title = f"{plans.get('dataset_name') or folder.name}_{configuration.name}"

    return completed(
        Card(
            schema="md.model/1",
            name=slug(title[:80]) or "nnunet",
            version=one_line(str(dataset.get("release") or "unknown"), 64),
            task="segmentation",
            inputs=inputs,
            labels=labels.labels,
            empty="valid",
            networks=tuple(names),
            ensemble="mean" if len(folds) > 1 else None,
            output=output,
            window=Window(configuration.patch, overlap=0.5, blending="gaussian-nnunet", step="even"),
            mirror=_mirrored(folds[0], configuration),
            description=one_line(str(dataset.get("description") or ""), 200),
            accepts={"modality": Bound(one_of=("CT",))} if is_ct else {},
            licence=one_line(str(dataset.get("licence") or dataset.get("license") or ""), 100),
            source=one_line(str(dataset.get("reference") or ""), 200),
        ),
        folder.name,
    )
