"""Which volumes a series holds, what tells them apart, and which of them is meant: never two mixed."""

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdcli.dicom.geometry import volume_geometry
from mdcli.dicom.volumes import DIMENSIONS, dimension_of, divide, parse_pick
from mdcli.errors import DataError, UsageError
from tests.made_series import AXIAL, CORONAL, SAGITTAL, instance, stack


def numbered(slices):
    """Give every slice a path and a UID of its own, in the order given."""
    return [
        replace(s, path=f"{n:03d}.dcm", attributes={**s.attributes, "SOPInstanceUID": f"1.2.{n}"})
        for n, s in enumerate(slices)
    ]


def volumes(keyword, values, count=4, **more):
    """Return one stack a value, one after the other."""
    return numbered([s for value in values for s in stack(count, **{**more, keyword: value})])


def grid(positions, times, **keywords):
    """Return one slice a time and position, times outermost; each keyword is a function of (time, position), or a value."""
    slices = []
    for t, p in itertools.product(range(times), range(positions)):
        facts = {name: value(t, p) if callable(value) else value for name, value in keywords.items()}
        slices.append(instance((0, 0, 3 * p), facts.pop("InstanceNumber", t * positions + p + 1), **facts))
    return numbered(slices)


def depths(part):
    return sorted(f.get("ImagePositionPatient")[2] for f in part.frames)


def refusal(slices, *picks):
    with pytest.raises(DataError) as caught:
        found = divide(slices, [parse_pick(p) for p in picks])
        if found.code:
            raise found.refusal()
    return caught.value


def chosen(slices, *picks):
    found = divide(slices, [parse_pick(p) for p in picks])
    assert (found.code, len(found.parts)) == (None, 1)
    return found.parts[0]


def test_one_stack_is_one_volume():
    found = divide(stack(5)[::-1])
    assert (len(found.parts), found.code, found.dropped, found.findings) == (1, None, (), ())
    assert len(found.parts[0].frames) == 5


# What differs at one position


@pytest.mark.parametrize(
    "keyword, word, values",
    [
        ("EchoNumbers", "echo", [1, 2]),
        ("EchoTime", "echo", [4.6, 9.2]),
        ("DiffusionBValue", "b", [0.0, 500.0, 1000.0]),
        ("TemporalPositionIdentifier", "time", [1, 2]),
        ("TemporalPositionIndex", "time", [1, 2, 3]),
        ("AcquisitionTime", "time", ["101500", "101530"]),
        ("TriggerTime", "phase", [0.0, 40.0, 80.0]),
        ("NominalPercentageOfCardiacPhase", "phase", [30.0, 70.0]),
        ("AcquisitionNumber", "acquisition", [1, 2]),
        ("ImageType", "type", [["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]]),
        ("ComplexImageComponent", "component", ["MAGNITUDE", "PHASE"]),
        ("ConvolutionKernel", "kernel", ["B30f", "B70f"]),
        ("InversionTime", "inversion", [100.0, 900.0]),
        ("FlipAngle", "flip", [5.0, 20.0]),
        ("KVP", "kv", [80.0, 140.0]),
        ("ContrastBolusAgent", "contrast", [None, "Iodine"]),
        ("SequenceName", "sequence", ["ep_b0", "ep_b1000"]),
        ("FrameReferenceTime", "frame_time", [0.0, 60000.0]),
        ("SeriesDescription", "description", ["after", "before"]),
        ("SliceThickness", "thickness", [1.0, 5.0]),
        ("StackID", "stack", ["1", "2"]),
        ("RescaleType", "RescaleType", ["HU", "US"]),
    ],
)
def test_volumes_are_told_apart_by_what_differs_and_never_mixed(keyword, word, values):
    found = divide(volumes(keyword, values[::-1])[::-1])
    assert found.code == "several-volumes"
    frozen = [tuple(v) if isinstance(v, list) else v for v in values]
    assert [p.values for p in found.parts] == [{keyword: v} for v in frozen]
    for part, value in zip(found.parts, values, strict=True):
        assert {str(f.get(keyword)) for f in part.frames} == {str(value)}
        assert depths(part) == [100, 103, 106, 109]
    error = found.refusal()
    assert error.numbers == {"volumes": len(values), "differs": [keyword]}
    assert f"\n  {len(values)}. {word} " in error.message


@pytest.mark.parametrize(
    "keyword, values, pick",
    [
        ("EchoNumbers", [1, 2], "echo=2"),
        ("EchoTime", [4.6, 9.2], "echo=9.2"),
        ("EchoTime", [4.6, 9.2], "EchoTime=9.20"),
        ("EchoTime", [4.6, 9.2], "echo=2"),
        ("DiffusionBValue", [0.0, 1000.0], "b=1000"),
        ("AcquisitionTime", ["101500", "101530"], "time=101530"),
        ("AcquisitionTime", ["101500", "101530"], "time=2"),
        ("ImageType", [["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]], "type=P"),
        ("ImageType", [["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]], r"type=original\primary\p"),
        ("ConvolutionKernel", ["B30f", "B70f"], "kernel=b70F"),
        ("ContrastBolusAgent", ["Iodine", None], "contrast=absent"),
        ("EchoNumbers", [1, 2], "volume=2"),
    ],
)
def test_a_pick_chooses_by_word_keyword_value_or_number(keyword, values, pick):
    part = chosen(volumes(keyword, values), pick)
    wanted = values[1] if pick != "contrast=absent" else None
    assert [f.get(keyword) for f in part.frames] == [wanted] * 4


def test_the_hint_of_a_refusal_chooses_a_volume():
    cases = [
        volumes("EchoTime", [4.6, 9.2]),
        volumes("ContrastBolusAgent", [None, "Iodine"]),
        volumes("SeriesDescription", ["two words", "three more words"]),
        grid(4, 3, AcquisitionTime=lambda t, p: f"1015{t * 4 + p:02d}"),
        grid(4, 4, EchoNumbers=lambda t, p: t // 2 + 1, ImageType=lambda t, p: ["ORIGINAL", "PRIMARY", "MP"[t % 2]]),
        [*volumes("ImageOrientationPatient", [AXIAL]), *turned_stack(4)],
    ]
    for slices in cases:
        found = divide(slices)
        hint = found.refusal().hint
        pick = hint.split("--pick ")[1].split(" ")[0]
        assert [f.path for f in chosen(slices, pick).frames] == [f.path for f in found.parts[0].frames], hint


@pytest.mark.parametrize(
    "pick", ["echo=7", "echo=one", "b=1000", "volume=3", "volume=0", "orientation=coronal", "EchoTime=9.21"]
)
def test_a_pick_that_means_nothing_here_is_refused_with_what_there_is(pick):
    slices = volumes("EchoNumbers", [1, 2])
    slices = [replace(s, attributes={**s.attributes, "EchoTime": 4.6 * s.get("EchoNumbers")}) for s in slices]
    assert refusal(slices, pick).code == "no-such-volume"


@pytest.mark.parametrize("text", ["echo", "=1", "echo=", "", "PatientName=x", "PatientID=1", "NoSuchThing=1"])
def test_what_is_no_choice_is_a_wrong_call(text):
    with pytest.raises(UsageError) as caught:
        parse_pick(text)
    assert caught.value.code == "bad-pick"


def test_every_word_is_a_choice():
    for word in (*DIMENSIONS, "orientation", "volume", "EchoTime"):
        assert str(parse_pick(f" {word} = 1 ")) == f"{word}=1"


def test_two_crossed_attributes_tell_apart_together():
    slices = grid(
        5,
        6,
        EchoNumbers=lambda t, p: t % 2 + 1,
        TemporalPositionIdentifier=lambda t, p: t // 2 + 1,
    )
    found = divide(slices)
    assert [p.values for p in found.parts] == [
        {"TemporalPositionIdentifier": t, "EchoNumbers": e} for t in (1, 2, 3) for e in (1, 2)
    ]
    assert all(depths(p) == [0, 3, 6, 9, 12] for p in found.parts)
    assert dimension_of(found.parts) == {
        "name": "time+echo",
        "keywords": ["TemporalPositionIdentifier", "EchoNumbers"],
        "unit": None,
        "values": [[1, 1], [1, 2], [2, 1], [2, 2], [3, 1], [3, 2]],
    }
    part = chosen(slices, "echo=2", "time=3")
    assert {(f.get("EchoNumbers"), f.get("TemporalPositionIdentifier")) for f in part.frames} == {(2, 3)}
    # One choice of two leaves several.
    assert refusal(slices, "echo=2").numbers["volumes"] == 3


def test_directions_of_diffusion_come_with_their_b_values():
    table = [(0.0, None), (1000.0, [1.0, 0, 0]), (1000.0, [0, 1.0, 0]), (1000.0, [0, 0, 1.0])]
    slices = grid(4, 4, DiffusionBValue=lambda t, p: table[t][0], DiffusionGradientOrientation=lambda t, p: table[t][1])
    found = divide(slices)
    assert dimension_of(found.parts)["keywords"] == ["DiffusionBValue", "DiffusionGradientOrientation"]
    assert sorted(map(str, dimension_of(found.parts)["values"])) == sorted(str(list(row)) for row in table)
    assert len(chosen(slices, "b=0").frames) == 4
    assert refusal(slices, "b=1000").numbers["volumes"] == 3


def test_settings_that_jitter_are_one_value():
    # TE of 4.6 and 9.2 ms, up to half a percent off in single slices.
    off = [1.0, 1.002, 1.0, 1.004]
    slices = grid(4, 2, EchoTime=lambda t, p: 4.6 * (t + 1) * off[p])
    found = divide(slices)
    assert [p.values["EchoTime"] for p in found.parts] == [4.6, 9.2]
    assert all(depths(p) == [0, 3, 6, 9] for p in found.parts)
    for pick in ("EchoTime=9.2", f"echo={9.2 * 1.004}", "echo=2"):
        assert depths(chosen(slices, pick)) == [0, 3, 6, 9]


def test_an_attribute_that_differs_everywhere_tells_nothing():
    slices = grid(
        4,
        2,
        EchoNumbers=lambda t, p: t + 1,
        AcquisitionNumber=lambda t, p: 100 + 4 * t + p,
        ContentTime=lambda t, p: f"1200{4 * t + p:02d}",
    )
    assert [p.values for p in divide(slices).parts] == [{"EchoNumbers": 1}, {"EchoNumbers": 2}]


def test_the_volumes_of_a_localizer_series_are_its_images():
    """All of it says LOCALIZER: nothing is left out."""
    slices = stack(4, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    assert len(divide(slices).parts[0].frames) == 4


# Times that differ from slice to slice


@pytest.mark.parametrize("keyword", ["AcquisitionTime", "ContentTime"])
def test_times_of_their_own_for_every_slice_are_put_in_order(keyword):
    slices = grid(4, 3, **{keyword: lambda t, p: f"1015{t * 4 + p:02d}.5"}, InstanceNumber=lambda t, p: 1 + p * 3 + t)
    found = divide(slices[::-1])
    assert [p.values for p in found.parts] == [{keyword: f"1015{t * 4:02d}.5"} for t in range(3)]
    for t, part in enumerate(found.parts):
        assert sorted(f.path for f in part.frames) == [f"{t * 4 + p:03d}.dcm" for p in range(4)]


def test_times_over_midnight_are_put_in_order_by_their_numbers():
    times = ["235958", "235959", "000000", "000001"]
    slices = grid(2, 2, AcquisitionTime=lambda t, p: times[t * 2 + p])
    found = divide(slices)
    assert [sorted(f.path for f in p.frames) for p in found.parts] == [["000.dcm", "001.dcm"], ["002.dcm", "003.dcm"]]


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(lambda t, p: 1 + t * 4 + p, id="one volume after the other"),
        pytest.param(lambda t, p: 1 + p * 3 + t, id="one position after the other"),
    ],
)
def test_numbers_alone_tell_volumes_apart_where_they_run_on(number):
    found = divide(grid(4, 3, InstanceNumber=number)[::-1])
    assert [p.values for p in found.parts] == [{"volume": 1}, {"volume": 2}, {"volume": 3}]
    for t, part in enumerate(found.parts):
        assert sorted(f.get("InstanceNumber") for f in part.frames) == sorted(number(t, p) for p in range(4))


def test_delays_after_the_heart_beat_start_anew_at_each_position():
    slices = grid(3, 4, TriggerTime=lambda t, p: 20.0 * p + 50.0 * t, InstanceNumber=lambda t, p: 100 - t * 3 - p)
    found = divide(slices)
    assert len(found.parts) == 4
    for t, part in enumerate(found.parts):
        assert sorted(f.get("TriggerTime") for f in part.frames) == [50.0 * t, 50.0 * t + 20, 50.0 * t + 40]


@pytest.mark.parametrize(
    "facts",
    [
        {"TemporalPositionIdentifier": lambda t, p: t + 1},
        {"AcquisitionTime": lambda t, p: f"1015{t:02d}"},
        {"AcquisitionTime": lambda t, p: f"1015{t * 4 + p:02d}"},
        {},
    ],
    ids=["times by number", "times by volume", "times by slice", "InstanceNumber"],
)
def test_the_last_time_may_be_incomplete(facts):
    found = divide(grid(4, 3, **facts)[:-3])
    assert [len(p.frames) for p in found.parts] == [4, 4, 1]
    assert [p.frames[0].path for p in found.parts] == ["000.dcm", "004.dcm", "008.dcm"]
    assert [f.code for f in found.findings] == ["uneven-volumes"]


@pytest.mark.parametrize(
    "facts",
    [
        {"InstanceNumber": lambda t, p: 1 + t * 4 + p},
        {"InstanceNumber": lambda t, p: 1 + p * 4 + t},
        {"TriggerTime": lambda t, p: 20.0 * p + 50.0 * t},
        {"AcquisitionTime": lambda t, p: f"1015{t * 4 + p:02d}"},
        {"AcquisitionTime": lambda t, p: f"1015{p * 4 + t:02d}"},
    ],
    ids=["numbers by volume", "numbers by position", "delays", "times by volume", "times by position"],
)
@pytest.mark.parametrize("missing", [1, 5, 10])
def test_an_image_that_is_missing_in_between_does_not_shift_the_others(facts, missing):
    """Where only the order tells volumes apart, nobody knows which of them the missing image was of."""
    slices = grid(4, 4, **facts)
    del slices[missing]
    error = refusal(slices)
    assert error.code in ("same-position", "several-volumes")
    if error.code == "several-volumes":
        for part in divide(slices).parts:
            assert len({int(f.path[:3]) // 4 for f in part.frames}) == 1


def test_two_images_at_one_position_are_named_both():
    slices = stack(8)
    slices[4] = instance(slices[3].get("ImagePositionPatient"), 5)
    error = refusal(slices)
    assert error.code == "same-position"
    assert "004.dcm" in error.message
    assert "005.dcm" in error.message


@pytest.mark.parametrize("number", [4, 9])
def test_one_image_taken_again_is_no_second_volume(number):
    again = instance(stack(8)[3].get("ImagePositionPatient"), number, SOPInstanceUID="1.2.9")
    error = refusal([*stack(8), replace(again, path="again.dcm")])
    assert error.code == "same-position"
    assert "004.dcm" in error.message
    assert "again.dcm" in error.message


def test_images_that_nothing_tells_apart_are_refused():
    slices = grid(4, 2, InstanceNumber=lambda t, p: 1)
    assert refusal(slices).code == "same-position"


def test_volumes_of_unlike_length_are_told():
    found = divide(numbered([*stack(8, EchoNumbers=1), *stack(6, EchoNumbers=2)]))
    (finding,) = found.findings
    assert (finding.code, [len(p.frames) for p in found.parts]) == ("uneven-volumes", [8, 6])


# Orientations


def turned_stack(count, degrees=90.0, iop=None, **more):
    if iop is None:
        a = math.radians(degrees)
        iop = [1.0, 0.0, 0.0, 0.0, math.cos(a), math.sin(a)]
    return [
        replace(s, path=f"t{n}.dcm", attributes={**s.attributes, "SOPInstanceUID": f"1.9.{n}", **more})
        for n, s in enumerate(stack(count, (0, 3, 0), ImageOrientationPatient=iop))
    ]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("iop", [CORONAL, SAGITTAL])
def test_a_localizer_among_slices_is_left_out_by_name(count, iop):
    found = divide([*turned_stack(count, iop=iop), *stack(20)])
    assert (len(found.parts), len(found.parts[0].frames), found.code) == (1, 20, None)
    assert [(f.path, why) for f, why in found.dropped] == [(f"t{n}.dcm", "localizer") for n in range(count)]
    (finding,) = found.findings
    assert (finding.code, finding.warning) == ("localizer-left-out", True)
    assert all(f"t{n}.dcm" in finding.message for n in range(count))


def test_three_localizers_of_two_orientations_are_left_out():
    slices = [
        *turned_stack(2, iop=CORONAL),
        *numbered(stack(20)),
        replace(turned_stack(1, iop=SAGITTAL)[0], path="s.dcm"),
    ]
    found = divide(slices)
    assert (len(found.parts), sorted(f.path for f, _ in found.dropped)) == (1, ["s.dcm", "t0.dcm", "t1.dcm"])


def test_what_says_that_it_is_a_localizer_is_one_wherever_it_lies():
    scout = instance((0, 0, 104), 90, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    found = divide([*stack(8, ImageType=["ORIGINAL", "PRIMARY", "AXIAL"]), scout])
    assert ([f.path for f, _ in found.dropped], len(found.parts[0].frames)) == (["090.dcm"], 8)


@pytest.mark.parametrize(
    "slices",
    [
        pytest.param([*stack(20), *turned_stack(4)], id="four are too many"),
        pytest.param([*stack(8), *turned_stack(3)], id="three of eight are more than a quarter"),
        pytest.param([*stack(20), *turned_stack(1, 1)], id="one slice turned by a degree"),
        pytest.param([*stack(20), *turned_stack(2, 19.9)], id="two slices turned by less than 20 degrees"),
        pytest.param([*stack(20), *turned_stack(2, 170)], id="two slices upside down, almost"),
        pytest.param([*stack(6), *turned_stack(6)], id="as many"),
    ],
)
def test_a_real_second_orientation_is_refused_and_nothing_dropped(slices):
    found = divide(slices)
    assert (found.code, len(found.parts), found.dropped) == ("mixed-orientations", 2, ())
    assert sum(len(p.frames) for p in found.parts) == len(slices)
    error = found.refusal()
    assert error.code == "mixed-orientations"
    assert "4d" not in error.hint
    assert "\n  2. orientation 2 (" in error.message


def test_an_orientation_is_picked_by_its_plane_or_its_number():
    slices = [*stack(12), *turned_stack(6, iop=CORONAL)]
    for pick in ("orientation=coronal", "orientation=2", "volume=2", "orientation=Coronal"):
        part = chosen(slices, pick)
        assert [f.path for f in part.frames] == [f"t{n}.dcm" for n in range(6)]
    assert len(chosen(slices, "orientation=axial").frames) == 12


def test_two_orientations_of_two_echoes_are_four_volumes():
    slices = [*volumes("EchoNumbers", [1, 2])]
    slices += [replace(s, path=f"t{e}{s.path}") for e in (1, 2) for s in turned_stack(4, EchoNumbers=e)]
    found = divide(slices)
    assert (found.code, len(found.parts)) == ("mixed-orientations", 4)
    part = chosen(slices, "orientation=coronal", "echo=2")
    assert {(f.path[0], f.get("EchoNumbers")) for f in part.frames} == {("t", 2)}


def test_cosines_that_jitter_are_one_orientation():
    slices = stack(10)
    for n, s in enumerate(slices):
        s.attributes["ImageOrientationPatient"] = [1.0, 1e-4 * (-1) ** n, 0, -1e-4 * (-1) ** n, 1.0, 0]
    assert len(divide(slices).parts) == 1


# Kinds


@pytest.mark.parametrize(
    "keyword, values",
    [
        ("ConvolutionKernel", ["B30f", "B70f"]),
        ("KVP", [80.0, 140.0]),
        ("EchoTime", [5.0, 80.0]),
        ("ImageType", [["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]]),
        ("RescaleType", ["HU", "US"]),
    ],
)
@pytest.mark.parametrize("pattern", ["AABB", "ABAB", "AAAB"])
def test_two_kinds_at_different_positions_are_no_volume(keyword, values, pattern):
    slices = [
        instance((0, 0, 3 * n), n + 1, **{keyword: values[letter == "B"]}) for n, letter in enumerate(pattern * 2)
    ]
    found = divide(slices)
    assert (found.code, len(found.parts)) == ("mixed-kinds", 2)
    for part in found.parts:
        assert len({str(f.get(keyword)) for f in part.frames}) == 1
    assert "4d" not in found.refusal().hint


def test_a_single_odd_image_is_named():
    slices = stack(8)
    slices[3] = instance(slices[3].get("ImagePositionPatient"), 4, PhotometricInterpretation="RGB", SamplesPerPixel=3)
    error = refusal(slices)
    assert error.code == "mixed-kinds"
    assert "004.dcm" in error.message


@given(
    echoes=st.integers(1, 3),
    times=st.integers(1, 3),
    positions=st.integers(1, 5),
    data=st.data(),
)
def test_whatever_the_order_every_volume_holds_one_image_a_position(echoes, times, positions, data):
    slices = grid(
        positions,
        echoes * times,
        EchoNumbers=lambda n, p: n % echoes + 1,
        TemporalPositionIdentifier=lambda n, p: n // echoes + 1,
    )
    found = divide(data.draw(st.permutations(slices)))
    assert len(found.parts) == echoes * times
    for part in found.parts:
        assert depths(part) == [3.0 * p for p in range(positions)]
        assert len({(f.get("EchoNumbers"), f.get("TemporalPositionIdentifier")) for f in part.frames}) == 1
    assert sorted(f.path for p in found.parts for f in p.frames) == [s.path for s in slices]


def test_a_phase_whose_times_differ_by_slice_is_picked_whole_by_value_and_by_number():
    # Three positions, five phases 40 ms apart; each position's first delay is 1.7 ms later than the one before.
    frames = [
        instance((0, 0, 8.0 * k), 1 + 5 * k + p, TriggerTime=40.0 * p + 1.7 * k, Modality="MR")
        for k in range(3)
        for p in range(5)
    ]
    for pick in ("phase=2", "phase=40", "TriggerTime=40"):
        (part,) = divide(frames, [parse_pick(pick)]).parts
        assert sorted(f.get("TriggerTime") for f in part.frames) == [40.0, 41.7, 43.4]
    with pytest.raises(DataError) as caught:
        divide(frames, [parse_pick("phase=9")])
    assert caught.value.code == "no-such-volume"


def test_a_picked_volume_with_fewer_positions_than_the_series_is_warned_of():
    frames = [
        instance((0, 0, 3.0 * k), 1 + 6 * t + k, TemporalPositionIdentifier=t + 1)
        for t in range(3)
        for k in range(6)
        if t < 2 or k < 4
    ]
    short = divide(frames, [parse_pick("time=3")]).findings
    assert [(f.code, f.numbers) for f in short] == [("fewer-positions", {"positions": 4, "of": 6})]
    assert divide(frames, [parse_pick("time=2")]).findings == ()


def test_a_time_point_over_midnight_is_never_mixed_with_the_next():
    # Two time points of six slices, 6 s a slice, 40 s between the two; the first one begins at 23:59:40.
    seconds = [-20 + 6 * k + 76 * t for t in range(2) for k in range(6)]
    clock = [divmod(s % 86400, 3600) for s in seconds]
    frames = [
        instance(
            (0, 0, 3.0 * (n % 6)),
            n + 1,
            AcquisitionTime=f"{hour:02d}{rest // 60:02d}{rest % 60:02d}",
            AcquisitionDate="20260101" if seconds[n] < 0 else "20260102",
        )
        for n, (hour, rest) in enumerate(clock)
    ]
    for dated in (True, False):
        some = frames if dated else [replace(f, attributes={**f.attributes, "AcquisitionDate": None}) for f in frames]
        parts = divide(some).parts
        assert [sorted(f.get("InstanceNumber") for f in p.frames) for p in parts] == [
            [1, 2, 3, 4, 5, 6],
            [7, 8, 9, 10, 11, 12],
        ]


def test_numbers_that_go_position_by_position_are_warned_of_as_no_proof():
    frames = [instance((0, 0, 3.0 * k), 1 + 2 * k + t) for k in range(4) for t in range(2)]
    assert [f.code for f in divide(frames).findings] == ["order-assumed"]
    by_volume = [instance((0, 0, 3.0 * k), 1 + 4 * t + k) for k in range(4) for t in range(2)]
    assert divide(by_volume).findings == ()


def test_the_order_of_frames_tells_nothing_where_an_object_says_its_dimensions():
    frames = [
        replace(instance((0, 0, 3.0 * (n // 2)), 1, DimensionIndexValues=[1, n // 2 + 1, 1 + n % 2]), frame=n)
        for n in range(8)
    ]
    with pytest.raises(DataError) as caught:
        divide(frames)
    assert caught.value.code == "same-position"


def test_phases_that_are_lost_at_different_positions_are_not_shifted_into_one_another():
    frames = [
        instance((0, 0, 8.0 * k), 1 + 9 * k + p, TriggerTime=100.0 * p + k)
        for k in range(6)
        for p in range(9)
        if p != (0 if k == 0 else 8)
    ]
    division = divide(frames)
    assert "order-assumed" in [f.code for f in division.findings]


def test_an_echo_that_is_a_number_and_a_time_of_others_is_ambiguous():
    frames = [
        instance((0, 0, 3.0 * k), 1 + 4 * e + k, EchoNumbers=1, EchoTime=time)
        for e, time in enumerate((4.6, 2.0, 9.0))
        for k in range(4)
    ]
    with pytest.raises(DataError) as caught:
        divide(frames, [parse_pick("echo=2")])
    assert caught.value.code == "ambiguous-pick"
    (part,) = divide(frames, [parse_pick("EchoTime=2")]).parts
    assert part.values == {"EchoTime": 2.0}


def test_a_heart_beat_of_its_own_at_every_slice_makes_no_volume_of_each():
    frames = [instance((0, 0, 8.0 * k), 1 + k, RepetitionTime=900.0 + 23 * k, Modality="MR") for k in range(8)]
    assert len(divide(frames).parts) == 1
    assert volume_geometry(frames).shape[0] == 8
