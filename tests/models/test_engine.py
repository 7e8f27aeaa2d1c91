import numpy as np
import pytest
import soundfile
import torch

from models import labels
from models.audio import Waveform
from models.engine import Engine
from models.errors import (
    AudioUndecodable,
    Cancelled,
    DeviceUnavailable,
    FormatUnsupported,
    LabelUnknown,
    QueryModelMismatch,
    SilentQuery,
    SpanOutside,
)
from models.options import SeparationOptions
from models.queries.query import Query
from tests.models.bands import BANDS, bundle, tone

FITTED = {"window_seconds": 0.5, "level": 0.1}


def engine(presence=None) -> Engine:
    return Engine(bundle(presence), device="cpu", precision="exact")


def recording(seconds: float, rate: int = 44100, bands=(0, 1, 2), channels: int = 2) -> Waveform:
    frames = round(seconds * rate)
    mixture = torch.stack([tone(band, frames, rate, 0.1) for band in bands]).sum(dim=0)
    gains = torch.linspace(1, 0.5, channels)[:, None]
    return Waveform(mixture * gains, rate)


def ask(band: int) -> Query:
    return Query(torch.eye(BANDS)[band], "bands@1")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mixture.wav"
    mixture = recording(3)
    soundfile.write(path, mixture.samples.T.numpy(), mixture.rate, "PCM_16")
    return path


def level(samples) -> float:
    """dB"""
    return 10 * np.log10(np.mean(np.square(np.asarray(samples, np.float64))) + 1e-20)


def test_warming_up_computes_every_network_and_changes_no_result():
    mixture, batches = recording(2), []
    cold, warm = engine(), engine()
    warm.observe_batches(batches.append)
    warm.warm_up()
    assert batches, "nothing was separated"
    expected, found = (model.separate(mixture, {"it": ask(1)}).stems["it"] for model in (cold, warm))
    assert torch.equal(expected.samples, found.samples)


def test_an_example_takes_its_sound_out_of_a_mixture():
    model = engine()
    mixture, example = recording(2), Waveform(tone(1, 11025, 22050)[None], 22050)
    query = model.embed([example])
    assert query.model == model.model_id == "bands@1"
    separated = model.separate(mixture, {"it": query})
    wanted = tone(1, mixture.frames, 44100, 0.1) * torch.tensor([[1.0], [0.5]])
    stem = separated.stems["it"]
    assert (stem.rate, stem.samples.shape) == (44100, mixture.samples.shape)
    assert level(stem.samples - wanted) < level(wanted) - 25
    assert torch.allclose(stem.samples + separated.residual.samples, mixture.samples, atol=1e-7)
    assert separated.presence["it"] > 0.9


def test_a_span_of_the_mixture_is_an_example_too():
    samples = torch.cat([tone(1, 32000, 32000), tone(2, 32000, 32000)])[None]
    query = engine().embed([Waveform(samples, 32000)], spans=[(1.2, 1.9)])
    assert query.vector.argmax() == 2


@pytest.mark.parametrize("span", [(-0.1, 0.5), (0.5, 0.5), (0.7, 0.3), (0.5, 1.1)])
def test_a_span_outside_the_recording_is_refused(span):
    with pytest.raises(SpanOutside):
        engine().embed([recording(1)], spans=[span])


def test_silence_is_no_query():
    with pytest.raises(SilentQuery):
        engine().embed([Waveform(torch.zeros(1, 32000), 32000)])


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_samples_that_are_no_numbers_are_refused_before_they_spread(wrong):
    broken = recording(1.0)
    broken.samples[1, 22050] = wrong
    model = engine()
    for ask_it in (lambda: model.embed([broken]), lambda: model.detect(broken), lambda: model.separate(broken, {})):
        with pytest.raises(ValueError, match=r"finite: at 0\.500 s"):
            ask_it()


def test_an_empty_recording_is_refused_in_words():
    nothing = recording(0.0)
    with pytest.raises(ValueError, match="the recording is empty"):
        engine().separate(nothing, {"low": ask(0)})
    with pytest.raises(SilentQuery, match=r"lasts 0\.000 s"):
        engine().embed([nothing])


def test_examples_in_anti_phase_are_heard():
    wave = tone(2, 32000, 32000)
    assert engine().embed([Waveform(torch.stack([wave, -wave]), 32000)]).vector.argmax() == 2


def test_a_recording_that_is_no_list_is_refused():
    with pytest.raises(TypeError, match=r"embed\(\[recording\]\)"):
        engine().embed(Waveform(torch.rand(1, 32000), 32000))  # type: ignore[arg-type]


def test_a_class_is_a_query_by_each_of_its_names():
    model = engine()
    for name in ("Siren", "siren", "/m/03kmc9"):
        assert torch.equal(model.label(name).vector, torch.eye(BANDS)[1])


def test_a_class_without_an_embedding_names_those_of_its_kin():
    with pytest.raises(LabelUnknown, match="no embedding of 'Bark'") as raised:
        engine().label("bark")
    assert raised.value.near == ["Dog"]
    with pytest.raises(LabelUnknown, match="Did you mean"):
        engine().label("sirene")


def test_a_model_without_class_embeddings_says_what_to_do():
    empty = bundle()
    empty.class_embeddings = {}
    with pytest.raises(LabelUnknown, match="give it an example"):
        Engine(empty, "cpu").label("Siren")


def test_a_query_of_another_model_is_refused():
    with pytest.raises(QueryModelMismatch):
        engine().separate(recording(1), {"it": Query(torch.ones(BANDS), "base@1")})


def test_a_query_of_an_earlier_version_with_the_same_encoder_is_understood():
    model = bundle()
    model.config["queries_of"] = ["0"]
    newer = Engine(model, device="cpu", precision="exact")
    old = Query(torch.eye(BANDS)[0], "bands@0")
    assert newer.accept(old).model == "bands@1"
    stems = newer.separate(recording(1), {"it": old, "the same": ask(0)}).stems
    assert torch.equal(stems["it"].samples, stems["the same"].samples)
    with pytest.raises(QueryModelMismatch):
        newer.accept(Query(torch.eye(BANDS)[0], "bands@00"))


def test_the_description_is_what_a_worker_announces():
    described = engine().describe()
    assert {key: described[key] for key in described if key != "classes"} == {
        "name": "bands",
        "version": "1",
        "embedding_size": BANDS,
        "labels": 527,
        "askable_labels": 3,
        "sample_rate": 32000,
        "queries_of": [],
    }
    assert len(described["classes"]) == 527
    dog = next(entry for entry in described["classes"] if entry["slug"] == "dog")
    assert dog.pop("description").startswith("Any sounds coming from the familiar domesticated canid")
    assert dog == {
        "label": "Dog",
        "mid": "/m/0bt9lr",
        "slug": "dog",
        "path": ["Animal", "Domestic animals, pets", "Dog"],
        "askable": True,
        "source": "clips",
        "synonyms": list(labels.find("Dog").synonyms),
    }


@pytest.mark.parametrize("seconds", [0.05, 1.0, 10.3])
def test_detection_of_any_length(seconds):
    found = engine().detect(recording(seconds, bands=(1,)), top=2, threshold=0.5)
    assert found.duration == pytest.approx(seconds, abs=1e-4)
    assert found.framewise.shape[0] == -(-round(seconds * 100) // 10)
    if seconds > 1:
        assert [(event.label, event.start) for event in found.events] == [("Male speech, man speaking", 0.0)]
        assert found.events[0].end == pytest.approx(seconds, abs=1e-4)


def test_a_file_is_detected_as_its_recording_is(file):
    model = engine()
    samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    there = model.detect(Waveform(torch.from_numpy(samples.T.copy()), rate))
    assert torch.allclose(model.detect_file(file).framewise, there.framewise, atol=1e-5)


def test_files_hold_what_memory_holds_and_add_up(file, tmp_path):
    model, queries = engine(FITTED), {"low": ask(0), "high": ask(3)}
    done = model.separate_file(file, queries, tmp_path / "stems", SeparationOptions(format="wav"))
    assert sorted(path.name for path in (tmp_path / "stems").iterdir()) == ["high.wav", "low.wav", "residual.wav"]
    assert (done.rate, done.channels, done.frames, done.duration, done.gain) == (44100, 2, 132300, 3.0, 1.0)
    samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    memory = model.separate(Waveform(torch.from_numpy(samples.T.copy()), rate), queries)
    assert done.presence == pytest.approx(memory.presence)
    parts = [soundfile.read(stem.path, dtype="float32", always_2d=True)[0] for stem in done.stems]
    assert np.abs(parts[0].T - memory.stems["low"].samples.numpy()).max() < 1e-6
    assert np.abs(sum(parts) - samples).max() < 1e-6


def test_flac_stems_and_residual_add_up_to_a_16_bit_mixture_exactly(file, tmp_path):
    done = engine().separate_file(file, {"a": ask(0), "b": ask(1)}, tmp_path / "stems")
    total = sum(soundfile.read(stem.path, dtype="int32")[0].astype(np.int64) for stem in done.stems)
    assert np.array_equal(total, soundfile.read(file, dtype="int32")[0])


def test_an_absent_target_is_turned_down_and_a_present_one_is_not(file, tmp_path):
    queries = {"present": ask(1), "absent": Query(torch.tensor([0.02, 0.02, 0.02, 1.0]), "bands@1")}
    open_, gated = (
        engine(FITTED).separate_file(file, queries, tmp_path / name, SeparationOptions(gate=gate, format="wav"))
        for name, gate in (("open", False), ("gated", True))
    )
    assert gated.presence["present"] > 0.9
    assert gated.presence["absent"] < 0.05
    levels = {
        (stem.name, number): level(soundfile.read(stem.path)[0])
        for number, done in enumerate((open_, gated))
        for stem in done.stems
    }
    assert levels["present", 1] == pytest.approx(levels["present", 0], abs=1e-6)
    assert levels["absent", 1] == pytest.approx(levels["absent", 0] - 30, abs=0.1)
    assert levels["absent", 1] > -120, "never digital zero"


def test_a_model_without_a_fitted_rule_tells_presence_and_leaves_stems_alone(file, tmp_path):
    query = {"absent": Query(torch.tensor([0.02, 0.02, 0.02, 1.0]), "bands@1")}
    done = engine().separate_file(file, query, tmp_path / "a", SeparationOptions(format="wav"))
    again = engine(FITTED).separate_file(file, query, tmp_path / "b", SeparationOptions(format="wav", gate=False))
    assert done.presence["absent"] < 0.2
    assert done.stems[0].peak == again.stems[0].peak


def test_no_targets_leave_the_mixture_as_the_residual(file, tmp_path):
    done = engine().separate_file(file, {}, tmp_path / "stems")
    assert [stem.name for stem in done.stems] == ["residual"]
    assert np.array_equal(soundfile.read(done.stems[0].path, dtype="int32")[0], soundfile.read(file, dtype="int32")[0])
    with pytest.raises(ValueError, match="nothing to write"):
        engine().separate_file(file, {}, tmp_path / "none", SeparationOptions(residual=False))


def test_progress_never_falls_and_ends_at_one(file, tmp_path):
    told: list[tuple[float, str]] = []
    engine().separate_file(
        file,
        {"a": ask(0)},
        tmp_path / "stems",
        SeparationOptions(0.5, 0.05, 0.1, batch=1),
        progress=lambda ratio, stage: told.append((ratio, stage)),
    )
    ratios = [ratio for ratio, _ in told]
    assert ratios == sorted(ratios)
    assert ratios[-1] == 1.0
    assert len(told) > 10
    assert list(dict.fromkeys(stage for _, stage in told)) == ["detecting", "separating", "encoding"]


@pytest.mark.parametrize("stage", ["detecting", "separating", "encoding"])
def test_cancelled_in_any_stage_leaves_nothing(stage, file, tmp_path):
    reached: list[str] = []
    with pytest.raises(Cancelled):
        engine().separate_file(
            file,
            {"a": ask(0)},
            tmp_path / "stems",
            SeparationOptions(0.5, 0.05, 0.1),
            progress=lambda ratio, name: reached.append(name),
            cancelled=lambda: stage in reached,
        )
    assert reached[-1] == stage
    assert not (tmp_path / "stems").exists()


def test_a_folder_that_was_there_keeps_what_is_not_ours(file, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("keep")
    with pytest.raises(Cancelled):
        engine().separate_file(file, {"a": ask(0)}, folder, cancelled=lambda: True)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_errors_come_before_work_and_leave_nothing(file, tmp_path):
    model, folder = engine(), tmp_path / "stems"
    with pytest.raises(FormatUnsupported):
        model.separate_file(file, {"a": ask(0)}, folder, SeparationOptions(format="mp3", bit_depth=16))
    with pytest.raises(ValueError, match="reserved"):
        model.separate_file(file, {"residual": ask(0)}, folder)
    (tmp_path / "text.wav").write_text("not audio")
    with pytest.raises(AudioUndecodable):
        model.separate_file(tmp_path / "text.wav", {"a": ask(0)}, folder)
    assert not folder.exists()


@pytest.mark.parametrize("device", ["cuda:63", "gpu"])
def test_a_device_that_is_not_there_is_an_error(device):
    with pytest.raises(DeviceUnavailable):
        Engine(bundle(), device=device)
