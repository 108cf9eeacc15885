"""The example pipeline against a real MLflow server: what it trains, what it registers, and how it fails."""

import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest

from examples.flights import data, register, training
from examples.flights.register import RegisteredFlights, ensure_version, set_alias

# MLflow warns at import about type hints of its own.
pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")

README = Path(register.__file__).with_name("README.md")
START_WITHIN = 120.0
FINISH_WITHIN = 240.0
ROWS = 4_000
KNOWN_AFTER_DEPARTURE = ["dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"]


@pytest.fixture(scope="module", autouse=True)
def _environment() -> Iterator[None]:
    """MLflow keeps its address in the environment and in a global: give both back as they were."""
    before = dict(os.environ)
    os.environ.update(register.MLFLOW_ENVIRONMENT)
    yield
    if "mlflow" in sys.modules:
        sys.modules["mlflow"].set_tracking_uri(None)
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an MLflow server of our own, which hands artifacts through."""
    folder = tmp_path_factory.mktemp("mlflow")
    address = f"http://127.0.0.1:{_free_port()}"
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            _server_command(folder, address.rpartition(":")[2]),
            cwd=folder,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait_until_healthy(address, server, folder / "log")
            yield address
        finally:
            # Its workers too: they share the session that was started for it.
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache folder for all tests here, so that each pipeline is trained once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def flights(cache: Path) -> pd.DataFrame:
    return data.load_flights(cache)


@pytest.fixture(scope="module")
def winter(cache: Path) -> training.Trained:
    return training.train(range(1, 4), cache_folder=cache)


@pytest.fixture(scope="module")
def half_year(cache: Path) -> training.Trained:
    return training.train(range(1, 7), cache_folder=cache)


@pytest.fixture(scope="module")
def registered(registry: str, cache: Path) -> RegisteredFlights:
    return ensure_version(registry, [2], rows=ROWS, cache_folder=cache)


@pytest.fixture
def local(registered: RegisteredFlights, cache: Path) -> training.Trained:
    """What `registered` was made from."""
    return training.train([2], rows=ROWS, cache_folder=cache)


@pytest.fixture(scope="module")
def downloaded(registered: RegisteredFlights, registry: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The version's folder as a replica would get it: from the server, by name and version."""
    folder = tmp_path_factory.mktemp("downloaded")
    uri = f"models:/{registered.name}/{registered.version}"
    return Path(_mlflow_at(registry).artifacts.download_artifacts(uri, dst_path=str(folder)))


class TestFlights:
    def test_features_are_known_before_departure(self, tmp_path: Path) -> None:
        """The model would look brilliant in training and fail on every request that cannot know the delay yet."""
        as_it_was, made_up = tmp_path / "as-it-was", tmp_path / "made-up"
        _copy_source(as_it_was, change={})
        _copy_source(made_up, change=dict.fromkeys(KNOWN_AFTER_DEPARTURE, 999.0))
        before, after = data._build(as_it_was), data._build(made_up)
        pd.testing.assert_frame_equal(before[data.FEATURES], after[data.FEATURES])
        assert (before["late"] != after["late"]).mean() > 0.5
        assert not set(data.FEATURES) & {*KNOWN_AFTER_DEPARTURE, "late", "label_time", "event_time", "month"}

    def test_labels_become_known_when_the_aircraft_lands(self, flights: pd.DataFrame) -> None:
        """Replayed outcomes would arrive hours early or late, and quality be computed on the wrong window."""
        source = _source().sort_values(["time_hour", "minute"], kind="stable", ignore_index=True)
        airports = pd.read_csv(data._package_folder() / "airports.csv")
        zones = {**dict(zip(airports["faa"], airports["tzone"], strict=True)), **data.MORE_ZONES}
        wrong = 0
        for zone, rows in flights[flights["label_time"].notna()].groupby(flights["dest"].map(zones)):
            clock = rows["label_time"].dt.tz_convert(str(zone)).dt
            said = source.loc[rows.index, "arr_time"] % 2400  # the source writes midnight as 2400
            wrong += int((clock.hour * 100 + clock.minute != said).sum())
        # The source is off by an hour for a flight that landed in the night when summer time began.
        assert wrong == 1
        # And on the right day: what is left of the way after delay and flight is spent on the ground.
        taxiing = flights["label_time"] - flights["event_time"]
        taxiing -= pd.to_timedelta(source["dep_delay"] + source["air_time"], unit="min")
        assert taxiing.dropna().between(pd.Timedelta(minutes=5), pd.Timedelta(hours=4)).all()

    def test_departures_are_in_utc_in_winter_and_summer(self, flights: pd.DataFrame) -> None:
        """Half the year would be replayed an hour off, against the weather of another hour."""
        source = _source().sort_values(["time_hour", "minute"], kind="stable", ignore_index=True)
        local = flights["event_time"].dt.tz_convert("America/New_York").dt
        assert (local.hour * 100 + local.minute == source["sched_dep_time"]).all()
        assert (local.month == source["month"]).all()
        assert flights["event_time"].is_monotonic_increasing

    def test_labels_are_late_by_more_than_15_minutes(self, flights: pd.DataFrame) -> None:
        """The model would be trained on another question than the one it is asked."""
        assert len(flights) == 336_776
        assert int(flights["late"].isna().sum()) == 9_430  # cancelled or diverted: no label, ever
        assert flights["late"].mean() == pytest.approx(0.23715, abs=1e-5)
        assert (flights["late"].isna() == flights["label_time"].isna()).all()

    def test_gaps_in_the_weather_stay_gaps(self, flights: pd.DataFrame) -> None:
        """A made-up value for missing weather would pass as an observation, also for drift."""
        gaps = flights[data.WEATHER].isna().mean()
        assert gaps["pressure"] == pytest.approx(0.115, abs=0.001)
        assert (gaps.drop("pressure") > 0.004).all()
        assert (gaps.drop("pressure") < 0.006).all()
        assert flights[data.FEATURES].drop(columns=data.WEATHER).notna().all(axis=None)
        assert (flights[data.NUMBERS].dtypes == "float64").all()

    def test_an_interrupted_write_leaves_no_table(self, tmp_path: Path) -> None:
        """After Ctrl-C at the wrong moment every later run would fail on half a file."""

        def interrupted(path: str) -> None:
            Path(path).write_text("half", encoding="utf-8")
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            data.write_atomically(tmp_path / "table", interrupted)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(("text", "months"), [("7", [7]), ("1-3", [1, 2, 3]), (" 10 - 12 ", [10, 11, 12])])
    def test_months_are_one_or_a_range(self, text: str, months: list[int]) -> None:
        """The period asked for would not be the period trained on."""
        assert list(data.parse_months(text)) == months

    @pytest.mark.parametrize("text", ["", "0", "13", "3-1", "1-13", "1,2", "March", "-3", "1-"])
    def test_other_months_are_refused_by_name(self, text: str) -> None:
        """A typing error would train on nothing, or on something else."""
        with pytest.raises(data.MonthsInvalid, match=re.escape(f"'{text}'")):
            data.parse_months(text)

    def test_months_with_a_gap_are_refused(self) -> None:
        """The last days of such a period are no honest test of what comes after it."""
        with pytest.raises(data.MonthsInvalid, match="1, 3"):
            data.check_months([1, 3])


class TestTraining:
    def test_the_model_of_winter_is_worth_serving(self, winter: training.Trained) -> None:
        """A broken join or encoder would go unnoticed: 0.70 as it is, 0.63 with the weather of other hours."""
        assert winter.metrics["roc_auc"] > 0.68
        base_rate = winter.metrics["base_rate"]
        assert winter.metrics["brier"] < 0.95 * base_rate * (1 - base_rate)
        assert set(winter.metrics) >= {"accuracy", "log_loss", "f1", "precision", "recall"}

    def test_it_is_measured_on_days_it_has_not_seen(self, flights: pd.DataFrame, winter: training.Trained) -> None:
        """Held-out flights of the same hours would flatter it, since storms delay everybody."""
        labelled = data.select_labelled(flights, [1, 2, 3])
        last_days = labelled[labelled["event_time"] > labelled["event_time"].max() - pd.Timedelta(days=14)]
        assert winter.metrics["holdout_rows"] == len(last_days)
        assert winter.metrics["base_rate"] == pytest.approx(float(last_days["late"].mean()))
        before = labelled.drop(last_days.index)
        again = training.build_pipeline("boosting").fit(before[data.FEATURES], before["late"].astype("int64"))
        assert training.measure(again, last_days) == pytest.approx(winter.metrics)

    def test_logistic_regression_works_as_well(self, cache: Path) -> None:
        """The second kind of pipeline, the one to read first, would be broken."""
        assert training.train(range(1, 4), "logistic", cache_folder=cache).metrics["roc_auc"] > 0.68

    def test_inverted_labels_make_a_bad_model(self, cache: Path, flights: pd.DataFrame) -> None:
        """The rehearsal of a rollback would have nothing to catch."""
        bad = training.train(range(1, 4), labels="inverted", cache_folder=cache)
        assert bad.metrics["roc_auc"] < 0.4
        assert training.measure(bad.pipeline, data.select_labelled(flights, [7]))["roc_auc"] < 0.4

    @pytest.mark.parametrize("kind", ["boosting", "logistic"])
    def test_gaps_and_strings_never_seen_get_an_answer(self, kind: data.Kind, cache: Path) -> None:
        """A new airline, or a weather station that is down, would be a 500 for the user."""
        trained = training.train([2], kind, rows=ROWS, cache_folder=cache)
        rows = trained.reference[data.FEATURES].head(3).copy()
        rows[data.WEATHER] = np.nan
        rows[data.STRINGS] = "never seen"
        assert np.isfinite(trained.pipeline.predict_proba(rows)).all()

    def test_training_twice_gives_the_same_model(self, cache: Path, tmp_path: Path, flights: pd.DataFrame) -> None:
        """Nobody could tell a change of the code from chance."""
        first = training.train([2], rows=ROWS, cache_folder=cache)
        second = training.train([2], rows=ROWS, cache_folder=tmp_path)
        rows = flights[data.FEATURES].head(1_000)
        np.testing.assert_array_equal(first.pipeline.predict_proba(rows), second.pipeline.predict_proba(rows))
        assert first.fingerprint == second.fingerprint

    def test_the_fingerprint_knows_recipe_data_and_libraries(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A changed model would be taken for one that is there already, and never be registered."""
        recipe = training.Recipe((1, 2, 3))
        prints = {
            training.fingerprint_recipe(recipe, "data"),
            training.fingerprint_recipe(recipe, "other data"),
            training.fingerprint_recipe(training.Recipe((1, 2)), "data"),
            training.fingerprint_recipe(training.Recipe((1, 2, 3), labels="inverted"), "data"),
        }
        monkeypatch.setattr(training, "installed_versions", lambda names: dict.fromkeys(names, "0"))
        assert len(prints | {training.fingerprint_recipe(recipe, "data")}) == 5

    def test_recipes_that_do_not_exist_are_refused(self, cache: Path) -> None:
        """A mistyped kind would silently train another one."""
        kind: Any = "forest"
        with pytest.raises(ValueError, match=r"'forest'.*boosting, logistic"):
            training.train([1], kind, cache_folder=cache)
        with pytest.raises(ValueError, match="at least 1000"):
            training.train([1], rows=10, cache_folder=cache)

    def test_the_readme_tells_how_the_year_goes(
        self, winter: training.Trained, half_year: training.Trained, flights: pd.DataFrame
    ) -> None:
        """The page would promise a summer challenger that does not win, or figures from another model."""
        rows = re.findall(r"^\| (\d+) \|(.+)\|$", README.read_text(encoding="utf-8"), re.MULTILINE)
        assert [int(month) for month, _ in rows] == list(range(4, 13))
        for month, cells in rows:
            said = [float(cell) if cell.strip() else math.nan for cell in cells.split("|")]
            assert said == pytest.approx(_year_row(int(month), winter, half_year, flights), abs=0.002, nan_ok=True)

    def test_the_challenger_wins_in_july(
        self, winter: training.Trained, half_year: training.Trained, flights: pd.DataFrame
    ) -> None:
        """The A/B test of the demo would have no winner."""
        july = data.select_labelled(flights, [7])
        champion, challenger = (training.measure(each.pipeline, july) for each in (winter, half_year))
        assert challenger["brier"] < champion["brier"] - 0.01
        assert challenger["roc_auc"] > champion["roc_auc"]


class TestRegisteredVersion:
    def test_it_predicts_what_the_local_pipeline_predicts(
        self, downloaded: Path, local: training.Trained, flights: pd.DataFrame
    ) -> None:
        """What serves would not be what was trained and measured."""
        import mlflow

        rows = flights.loc[flights["month"] == 5, data.FEATURES].head(5_000)
        assert rows["pressure"].isna().any()
        loaded = mlflow.sklearn.load_model(str(downloaded))
        np.testing.assert_array_equal(loaded.predict_proba(rows), local.pipeline.predict_proba(rows))
        through_signature = mlflow.pyfunc.load_model(str(downloaded)).predict(rows)
        np.testing.assert_array_equal(through_signature, local.pipeline.predict(rows))

    def test_the_signature_names_and_types_every_column(self, downloaded: Path) -> None:
        """Switchyard validates requests by it: a wrong type refuses good requests, or lets bad ones through."""
        import mlflow

        columns = mlflow.models.get_model_info(str(downloaded)).signature.inputs.to_dict()
        assert [each["name"] for each in columns] == data.FEATURES
        types = {each["name"]: each["type"] for each in columns}
        assert types == dict.fromkeys(data.STRINGS, "string") | dict.fromkeys(data.NUMBERS, "double")
        assert {each["name"] for each in columns if not each["required"]} == set(data.WEATHER)

    def test_the_input_example_is_a_request(self, downloaded: Path, local: training.Trained) -> None:
        """Whoever tries the model first would copy an example that fails."""
        import mlflow

        example = mlflow.models.Model.load(str(downloaded)).load_input_example(str(downloaded))
        assert list(example.columns) == data.FEATURES
        assert set(local.pipeline.predict(example)) <= {0, 1}
        # NaN is no JSON: strict parsers refuse the whole file.
        assert "NaN" not in (downloaded / "serving_input_example.json").read_text(encoding="utf-8")

    def test_the_reference_sample_travels_with_it(self, downloaded: Path, local: training.Trained) -> None:
        """Drift would have nothing to be measured against once the version is copied from the registry."""
        sample = pd.read_parquet(downloaded / "extra_files" / "reference_sample.parquet")
        assert list(sample.columns) == [*data.FEATURES, "prediction", "score", "label"]
        assert len(sample) == ROWS
        assert sample["pressure"].isna().any()
        features = sample[data.FEATURES]
        np.testing.assert_array_equal(local.pipeline.predict(features), sample["prediction"])
        np.testing.assert_allclose(local.pipeline.predict_proba(features)[:, 1], sample["score"], rtol=0, atol=1e-12)
        assert 0.1 < sample["label"].mean() < 0.4

    def test_artifacts_come_through_the_server(self, registered: RegisteredFlights, registry: str) -> None:
        """The other tests would prove nothing for a registry on another host."""
        client = _mlflow_at(registry).MlflowClient()
        assert client.get_model_version_download_uri("flights", registered.version).startswith("mlflow-artifacts:")

    def test_requirements_are_those_installed(self, downloaded: Path) -> None:
        """The model would be loaded by another scikit-learn than the one that wrote it."""
        requirements = (downloaded / "requirements.txt").read_text(encoding="utf-8").split()
        installed = training.installed_versions(training.LIBRARIES)
        assert set(requirements) >= {f"{name}=={version}" for name, version in installed.items()}

    def test_run_and_tags_say_where_it_comes_from(
        self, registered: RegisteredFlights, registry: str, local: training.Trained
    ) -> None:
        """Nobody could tell what a version in production was trained on."""
        client = _mlflow_at(registry).MlflowClient()
        version = client.get_model_version("flights", registered.version)
        assert version.tags == {
            "kind": "boosting",
            "labels": "true",
            "window_start": local.window[0],
            "window_end": local.window[1],
            "dataset_digest": local.dataset_digest,
            "fingerprint": local.fingerprint,
        }
        run = client.get_run(version.run_id)
        assert run.data.metrics == pytest.approx(registered.metrics)
        assert run.data.params["dataset_digest"] == local.dataset_digest
        assert run.info.status == "FINISHED"


class TestRegistering:
    def test_the_same_is_not_registered_twice(self, registered: RegisteredFlights, registry: str, cache: Path) -> None:
        """The registry would fill up with copies each time the demo starts."""
        steps: list[str] = []
        again = ensure_version(registry, [2], rows=ROWS, cache_folder=cache, progress=steps.append)
        assert (again.version, again.reused) == (registered.version, True)
        assert again.metrics == registered.metrics
        assert not registered.reused
        assert not any("training on" in step or "registering" in step for step in steps)

    def test_it_is_found_without_the_cache_too(
        self, registered: RegisteredFlights, registry: str, tmp_path: Path
    ) -> None:
        """Deleting the cache, or training on a second machine, would register copies."""
        again = ensure_version(registry, [2], rows=ROWS, cache_folder=tmp_path)
        assert (again.version, again.reused) == (registered.version, True)

    def test_another_recipe_is_another_version(self, registered: RegisteredFlights, registry: str, cache: Path) -> None:
        """The challenger would be taken for the champion."""
        other = ensure_version(registry, [2], labels="inverted", rows=ROWS, cache_folder=cache)
        assert other.version != registered.version
        assert not other.reused

    def test_an_alias_names_the_version(self, registered: RegisteredFlights, registry: str) -> None:
        """`--alias champion` would leave the registry without a champion."""
        set_alias(registry, registered.version, "latest-winter")
        found = _mlflow_at(registry).MlflowClient().get_model_version_by_alias("flights", "latest-winter")
        assert str(found.version) == registered.version
        with pytest.raises(register.RegistryRefused, match=r"version=999.* not found"):
            set_alias(registry, "999", "latest-winter")

    def test_a_registry_that_is_down_is_told_at_once(self, tmp_path: Path) -> None:
        """The user would look at a silent terminal for four minutes, having waited for the training before."""
        address = f"http://127.0.0.1:{_free_port()}"
        started = time.monotonic()
        with pytest.raises(register.RegistryUnreachable, match=rf"{address}.*switchyard up.*--tracking-uri"):
            ensure_version(address, [2], cache_folder=tmp_path)
        assert time.monotonic() - started < 30
        assert list(tmp_path.iterdir()) == []

    def test_a_path_is_no_registry(self, tmp_path: Path) -> None:
        """A mistyped path would silently become a new, empty registry."""
        with pytest.raises(register.RegistryRefused, match="no address"):
            ensure_version(f"sqlite:///{tmp_path}/typo.db", [2], cache_folder=tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_a_server_that_is_no_registry_is_told(self, registry: str, cache: Path) -> None:
        """A wrong port would end in a page of HTML."""
        with pytest.raises(register.RegistryRefused) as refused:
            ensure_version(f"{registry}/elsewhere", [2], rows=ROWS, cache_folder=cache)
        assert "404" in str(refused.value)
        assert "\n" not in str(refused.value)

    def test_nothing_of_mlflow_is_imported_before_telemetry_is_off(self, tmp_path: Path) -> None:
        """Usage would be reported to MLflow's makers before anyone could say no."""
        code = (
            "import sys, os\n"
            "from examples.flights import register\n"
            "assert 'mlflow' not in sys.modules\n"
            "with register._registry('http://127.0.0.1:1'): pass\n"
            "from mlflow.telemetry.utils import is_telemetry_disabled\n"
            "assert is_telemetry_disabled()\n"
        )
        told = {"PYTEST_CURRENT_TEST", "CI", *register.MLFLOW_ENVIRONMENT}
        environment = {name: value for name, value in os.environ.items() if name not in told}
        subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, check=True, timeout=FINISH_WITHIN)


class TestCommandLine:
    def test_the_readmes_commands_run(self, registry: str, cache: Path, tmp_path: Path) -> None:
        """The first thing a reader tries would fail."""
        commands = re.search(r"```bash\n(.+?)```", README.read_text(encoding="utf-8"), re.DOTALL)
        assert commands is not None
        lines = commands[1].strip().splitlines()
        assert len(lines) == 3
        for line in lines:
            done = _run([*line.split()[1:], "--cache-folder", str(cache)], registry, tmp_path)
            assert done.returncode == 0, done.stderr
            assert "roc_auc" in done.stdout
            assert re.search(r"flights version \d+ registered", done.stdout)
        again = _run([*lines[0].split()[1:], "--cache-folder", str(cache)], registry, tmp_path)
        assert re.search(r"flights version \d+ was registered before, now champion", again.stdout)

    def test_wrong_months_are_a_wrong_argument(self, registry: str, tmp_path: Path) -> None:
        """Scripts could not tell a typing error from a registry that is down."""
        done = _run(["-m", "examples.flights", "train", "--months", "11-13"], registry, tmp_path)
        assert done.returncode == 2
        assert "11-13" in done.stderr

    def test_a_registry_that_is_down_has_its_own_exit_code(self, tmp_path: Path) -> None:
        """Scripts could not tell a registry that is down from a failed training."""
        address = f"http://127.0.0.1:{_free_port()}"
        done = _run(["-m", "examples.flights", "train", "--months", "1"], address, tmp_path)
        assert done.returncode == 3
        assert address in done.stderr
        assert "Traceback" not in done.stderr

    def test_the_readmes_own_pipeline_registers(self, registry: str, tmp_path: Path) -> None:
        """Whoever replaces the example by a pipeline of their own would start from code that fails."""
        code = re.search(r"```python\n(.+?)```", README.read_text(encoding="utf-8"), re.DOTALL)
        assert code is not None
        done = _run(["-c", code[1]], registry, tmp_path)
        assert done.returncode == 0, done.stderr
        mlflow = _mlflow_at(registry)
        folder = mlflow.artifacts.download_artifacts("models:/cancer/1", dst_path=str(tmp_path))
        sample = pd.read_parquet(Path(folder) / "extra_files" / "reference_sample.parquet")
        model = mlflow.pyfunc.load_model(folder)
        columns = model.metadata.get_input_schema()
        assert set(columns.input_types()) == {mlflow.types.DataType.double}
        np.testing.assert_array_equal(model.predict(sample[columns.input_names()]), sample["prediction"])


def _server_command(folder: Path, port: str) -> list[str]:
    return [
        *(sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", port),
        *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts")),
    ]


def _wait_until_healthy(address: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    give_up = time.monotonic() + START_WITHIN
    while time.monotonic() < give_up and server.poll() is None:
        try:
            if httpx.get(f"{address}/health", timeout=5).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    pytest.fail(f"the MLflow server did not come up:\n{log.read_text(encoding='utf-8')}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _mlflow_at(address: str) -> Any:
    """MLflow pointed at this server: `download_artifacts` looks for versions nowhere else, whatever it is given."""
    import mlflow

    mlflow.set_tracking_uri(address)
    return mlflow


def _run(arguments: list[str], registry: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "SWITCHYARD_MLFLOW_TRACKING_URI": registry, "COLUMNS": "200"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=FINISH_WITHIN,
    )


def _source() -> pd.DataFrame:
    return pd.read_csv(data._package_folder() / "flights.csv.zip")


def _copy_source(folder: Path, change: dict[str, float]) -> None:
    """The package's files with some columns of the flights replaced; the first 20,000 flights are enough."""
    folder.mkdir()
    for name in ("weather.csv", "airports.csv"):
        (folder / name).symlink_to(data._package_folder() / name)
    with zipfile.ZipFile(folder / "flights.csv.zip", "w") as archive:
        archive.writestr("flights.csv", _source().head(20_000).assign(**change).to_csv(index=False))


def _year_row(month: int, winter: training.Trained, half_year: training.Trained, flights: pd.DataFrame) -> list[float]:
    """Late, AUC and Brier of both models, in the order of the README's table."""
    rows = data.select_labelled(flights, [month])
    first, second = (training.measure(each.pipeline, rows) for each in (winter, half_year))
    if month <= 6:
        second = dict.fromkeys(second, math.nan)
    return [first["base_rate"], first["roc_auc"], second["roc_auc"], first["brier"], second["brier"]]
