"""What the agent reads on a board, against fake trees of its kernel, a fake driver, and simulated sensors."""

import contextlib
import random
import select
from collections import deque
from types import SimpleNamespace

import agent_program
import board_trees
import fake_driver
import numpy as np
import pytest
from simulated_sensors import Machine, averaging_meter, on_off, ticking_counter

from edgelean.sensors.hwmon import find_rails
from edgelean.target.latency import percentile_interval

TREES = (
    board_trees.orin_nano,
    board_trees.agx_orin,
    board_trees.agx_orin_jetpack_7,
    board_trees.thor,
    board_trees.thor_asleep,
    board_trees.xavier_nx_jetpack_4,
    board_trees.xavier_nx_jetpack_5,
    board_trees.agx_xavier_jetpack_4,
)


@pytest.fixture(scope="module")
def parts():
    with agent_program.modules() as found:
        yield found


# -- statistics that decide when to stop -------------------------------------------------------------------------------


@pytest.mark.parametrize("percentile", [50, 90, 99])
def test_the_stop_rule_knows_the_width_of_the_exact_interval(parts, percentile):
    samples = [1 + abs(random.Random(percentile).gauss(0, 0.1)) for _ in range(3000)]
    assert parts.agent.half_width(samples, percentile) == pytest.approx(
        percentile_interval(samples, percentile).half_width, rel=0.25, abs=1e-4
    )
    assert parts.agent.half_width(samples[:20], 99) == np.inf


def test_calls_go_on_while_a_verdict_on_the_limit_is_open(parts):
    plan = {"percentile": 90, "limit_ms": 2.0}
    assert not parts.agent.is_clear([1.0] * 90 + [3.0] * 10, plan)
    assert parts.agent.is_clear([1.0] * 1000, plan)
    assert parts.agent.is_clear([1.0] * 50 + [3.0] * 50, plan)
    assert parts.agent.is_clear([1.0] * 90 + [3.0] * 10, {**plan, "limit_ms": None})


# -- windows of energy -------------------------------------------------------------------------------------------------


class Kept:
    """The samples of a simulated thread that are kept; grows while the simulated time goes on."""

    def __init__(self, samples, keep):
        self._samples, self._keep, self._kept = samples, keep, [samples.popleft()]

    def _grow(self):
        while self._samples:
            sample = self._samples.popleft()
            if self._keep(self._kept[-1][1], sample[1]):
                self._kept.append(sample)
        return self._kept

    def append(self, sample):
        self._grow().append(sample)

    def __len__(self):
        return len(self._grow())

    def __getitem__(self, index):
        return self._grow()[index]


@pytest.fixture
def machine(parts, monkeypatch):
    """A simulated machine in whose time the agent's windows live."""
    simulated = Machine(before_w=150.0, idle_w=10.0)

    @contextlib.contextmanager
    def follow(read, period_s, keep):
        with simulated.watch(read, simulated.clock, period_s) as samples:
            kept = Kept(samples, keep)
            yield kept
        kept.append((simulated.clock(), read()))

    monkeypatch.setattr(parts.windows, "follow", follow)
    monkeypatch.setattr(parts.windows, "time", SimpleNamespace(perf_counter=simulated.clock))
    return simulated


@pytest.mark.parametrize("steps", [((0.0007, 50.0),), ((0.013, 50.0),), on_off(0.13), on_off(0.05)])
def test_a_counter_is_read_from_tick_to_tick(parts, machine, steps):
    work = machine.work(steps)
    exact_j = sum(seconds * watts for seconds, watts in steps)
    window = parts.windows.Counter("sim", "simulated", ticking_counter(machine, 0.03).read_j).over(work, 1.0)
    assert window["joules"] / window["calls"] == pytest.approx(exact_j, rel=0.01)
    assert 1.0 <= window["seconds"] <= 1.5


def test_a_meter_does_not_see_the_model_before(parts, machine):
    work = machine.work(((0.004, 40.0),))
    read_w = averaging_meter(machine).read_w
    assert parts.windows.Meter("sim", "simulated", read_w, 0.05, 0.0).over(work, 0.5)["joules"] > 40.0
    machine.draw(150.0, 2.0)
    window = parts.windows.Meter("sim", "simulated", read_w, 0.05, 1.3).over(work, 0.5)
    assert window["joules"] / window["calls"] == pytest.approx(0.16, rel=0.01)


def test_a_meter_is_out_of_step_with_calls_whose_power_varies(parts, machine):
    work = machine.work(on_off(0.02))
    window = parts.windows.Meter("sim", "simulated", lambda: machine._watts[-1], 0.05, 0.0).over(work, 4.0)
    assert window["joules"] / window["calls"] == pytest.approx(0.02 * (0.6 * 100 + 0.4 * 20), rel=0.05)


@pytest.mark.parametrize(("end_j", "words"), [(5.0, "stood still"), (-5.0, "ran backwards")])
def test_a_broken_counter_is_named(parts, machine, end_j, words):
    counter = parts.windows.Counter(
        "rapl", "simulated", lambda: 5.0 if machine.now_s < 0.2 else end_j - machine.now_s * (end_j < 0)
    )
    with pytest.raises(parts.common.RefusedError, match=f"rapl: the energy counter {words}"):
        counter.over(machine.work(((0.01, 5.0),)), 0.5)


def test_a_meter_of_nothing_is_named(parts, machine):
    meter = parts.windows.Meter("hwmon", "simulated", lambda: 0.0, 0.05, 0.0)
    with pytest.raises(parts.common.RefusedError, match="hwmon: the power read 0 W"):
        meter.over(machine.work(((0.01, 5.0),)), 0.5)


def test_the_second_thread_samples_and_hands_over_its_error(parts):
    values = deque([1.0, 1.0, 2.0])

    def read():
        if not values:
            raise parts.common.RefusedError("sensor", "gone", "look")
        return values.popleft()

    follow = parts.windows.follow(read, 1e-3, lambda last, now: last != now)
    samples = follow.__enter__()
    select.select([], [], [], 0.3)
    assert [value for _, value in samples] == [1.0, 2.0]
    with pytest.raises(parts.common.RefusedError, match="gone"):
        follow.__exit__(None, None, None)


class Doomed:
    """A sensor that fails at its first window."""

    name, method = "nvml", "a counter"

    def over(self, work, seconds):
        raise self.error("sensor", "nvml: the GPU is lost", "restart")


PLAN = {"idle_s": 0.0, "idle_windows": 2, "windows": 2, "most_windows": 2, "half_width": 1, "window_s": 0.01}
PLAN |= {"warm_up_s": 0.0, "longest_delay_s": 0.0, "sensor": {"backend": "nvml"}, "on_loss": "next"}


@pytest.fixture
def line_up(parts, monkeypatch):
    """Put sensors in line: the first fails in the middle, the second works."""
    doomed = Doomed()
    doomed.error = parts.common.RefusedError
    steady = SimpleNamespace(
        name="nvml", method="a power", over=lambda work, seconds: {"joules": 1.0, "seconds": 1.0, "calls": 2}
    )

    def put(*names):
        line = [{"doomed": doomed, "steady": steady}[name] for name in names]
        monkeypatch.setattr(parts.power, "line_up", lambda rule, bus_id: (line, []))

    return put


def test_a_sensor_that_dies_leads_to_the_next_one_and_the_method_says_so(parts, line_up):
    line_up("doomed", "steady")
    energy = parts.agent.read_energy(lambda: None, None, PLAN, lambda words: None)
    assert len(energy["windows"]) == 2
    assert energy["method"] == "since nvml: the GPU is lost: a power"


@pytest.mark.parametrize(("line", "on_loss"), [(("doomed", "steady"), "stop"), (("doomed",), "next")])
def test_a_sensor_that_dies_stops_where_that_is_wanted_or_none_is_left(parts, line_up, line, on_loss):
    line_up(*line)
    with pytest.raises(parts.common.RefusedError, match="the GPU is lost") as refused:
        parts.agent.read_energy(lambda: None, None, {**PLAN, "on_loss": on_loss}, lambda words: None)
    assert (refused.value.kind, "resume" in refused.value.remedy) == ("sensor", True)


# -- sensors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.__name__)
def test_the_rails_of_a_jetson_are_those_that_this_machine_would_find(parts, tmp_path, tree):
    tree(tmp_path)
    expected = {rail.name: rail for rail in find_rails(tmp_path)}
    found = parts.power.rails(tmp_path)
    assert {name: rail.read_w() for name, rail in found.items()} == pytest.approx(
        {name: rail.read_w() for name, rail in expected.items()}
    )
    assert {name: rail.settle_s for name, rail in found.items()} == pytest.approx(
        {name: rail.settle_s for name, rail in expected.items()}, rel=0.05
    )


def test_the_total_rail_is_the_power_alone_and_else_the_sum(parts, tmp_path):
    board_trees.orin_nano(tmp_path / "nano")
    board_trees.agx_orin(tmp_path / "agx")
    rails = ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"]
    nano = parts.power.open_hwmon("VDD_IN", ["VDD_SOC"], tmp_path / "nano")
    agx = parts.power.open_hwmon("VDD_IN", rails, tmp_path / "agx")
    assert (nano._read_w(), agx._read_w()) == pytest.approx((6.0, 2.4 + 0.8 + 3.52))
    assert "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0" in agx.method
    with pytest.raises(parts.common.RefusedError, match=r"the rails are .*, wanted: VIN") as refused:
        parts.power.open_hwmon("VIN", ["VIN"], tmp_path / "nano")
    assert "sensors.total_rail" in refused.value.remedy


def test_rapl_counts_each_package_once_and_repairs_a_wrap(parts, tmp_path):
    package = board_trees.rapl_zone(tmp_path, "intel-rapl:0", "package-0", 900_000_000, 1_000_000_000)
    board_trees.rapl_zone(tmp_path, "intel-rapl:0:0", "core", 100)
    board_trees.rapl_zone(tmp_path, "intel-rapl:1", "psys", 100)
    board_trees.rapl_zone(tmp_path, "intel-rapl:2", "package-1-die-0", 5_000_000_000, 10**10)
    board_trees.rapl_zone(tmp_path, "intel-rapl:3", "package-1-die-1", 5_000_000_100, 10**10)
    counter = parts.power.open_rapl(tmp_path)
    assert "package-0 + package-1-die-0:" in counter.method
    package.write_text("100000000\n")
    assert counter._read_j() == pytest.approx(200.0)


def test_the_power_chip_of_a_raspberry_pi_5_is_its_rails_with_both_numbers(parts):
    words = "  A_A current(0)=2.0A\n  A_V volt(8)=3.0V\n  B_A current(1)=1.0A\n EXT5V_V volt(24)=5.1V\n"
    assert parts.power.pmic_w(words) == pytest.approx(1.1451 * 6.0 + 0.5879)
    with pytest.raises(parts.common.RefusedError, match="no rail in what vcgencmd says"):
        parts.power.pmic_w("error=1 error_msg='Command not registered'")


@pytest.fixture
def driver(parts, monkeypatch):
    """A driver with fake GPUs, under the agent's own calls of NVML."""
    monkeypatch.setattr(parts.nvml, "LIBRARY", str(fake_driver.build_library()))
    return fake_driver.FakeDriver()


def opened(parts, bus_id=None):
    """Return what each sensor of a GPU is, or why it is none."""
    found = []
    for opener in (parts.power.open_nvml_counter, parts.power.open_nvml_instant, parts.power.open_nvml_average):
        try:
            found.append(opener(bus_id).method)
        except parts.common.RefusedError as error:
            found.append(str(error))
    return found


def test_a_gpu_tells_its_energy_its_power_and_its_averaged_power(parts, driver):
    driver.name("NVIDIA RTX A")
    counter, instant, average = opened(parts)
    assert counter == "NVML energy counter of NVIDIA RTX A, between two of its ticks"
    assert instant == "NVML instantaneous power of NVIDIA RTX A, sampled every 50 ms"
    assert average == "NVML power of NVIDIA RTX A, averaged over 1 s, sampled every 50 ms"
    gpu = parts.nvml.Nvml().gpu(None)
    driver.set(power_mw=80e3)
    before_j = gpu.energy_j()
    driver.lib.fake_advance(10.0)
    assert gpu.energy_j() - before_j == pytest.approx(800.0, abs=9.0)
    assert gpu.instant_w() == pytest.approx(80.0)


def test_a_gpu_is_asked_what_it_can_tell(parts, driver):
    driver.set(no_counter=1, no_field_186=1)
    counter, instant, average = opened(parts)
    assert "nvmlDeviceGetTotalEnergyConsumption" in counter
    assert "field 186" in instant
    assert "averaged over 1 s" in average
    driver.set(lost=1)
    assert all("nvmlDevice" in words for words in opened(parts))


def test_slices_of_a_gpu_and_a_gpu_among_several_are_refused(parts, driver):
    driver.set(mig=1)
    assert all("MIG" in words for words in opened(parts))
    driver.set(mig=0)
    driver.name("NVIDIA RTX A", "NVIDIA RTX B")
    assert all("wanted one GPU, found NVIDIA RTX A, NVIDIA RTX B" in words for words in opened(parts))


def test_the_gpu_that_cuda_uses_is_found_by_its_bus(parts, driver):
    driver.name("NVIDIA RTX A", "NVIDIA RTX B")
    driver.set(reverse_pci=1)
    nvml = parts.nvml.Nvml()
    by_bus = {bus: nvml.gpu(bus).name() for bus in ("0000:00:00.0", "0000:01:00.0")}
    assert by_bus == {"0000:00:00.0": "NVIDIA RTX B", "0000:01:00.0": "NVIDIA RTX A"}


def test_the_state_of_a_gpu_is_its_clock_its_heat_and_what_holds_it_back(parts, driver):
    driver.set(sm_mhz=1410, temperature_c=61, power_limit_mw=250e3, throttle=0x24, heat_held_s=2.5, memory_mhz=1593)
    state = parts.nvml.Nvml().gpu(None).state()
    assert (state["clock_mhz"], state["memory_mhz"], state["temperature_c"]) == (1410, 1593, 61)
    assert (state["power_limit_w"], state["reasons"]) == (250, 0x24)
    assert state["held_s"]["heat"] == pytest.approx(2.5)


def test_the_clock_of_a_jetson_is_that_of_its_gpu_and_not_of_its_video_engines(parts, tmp_path):
    for name, hertz in (("15a80000.vic", 115_200_000), ("17000000.gpu", 612_000_000), ("15480000.nvdec", 1)):
        board_trees.write(tmp_path, f"sys/class/devfreq/{name}/cur_freq", hertz)
    watch = parts.facts.Watch(None, tmp_path)
    watch.look()
    assert watch.clocks_mhz == [612.0]
    nothing = parts.facts.Watch(None, tmp_path / "elsewhere")
    nothing.look()
    assert nothing.clocks_mhz == []


def test_only_processors_that_may_be_used_are_counted(parts):
    stat = "cpu  60 0 30 900\ncpu0 10 0 10 300\ncpu1 20 0 5 305\ncpu2 30 0 15 295\nintr 1 2\n"
    assert parts.facts.summed(stat, {"cpu1", "cpu2"}) == "cpu 50 0 20 600"
    assert parts.facts.summed("", {"cpu0"}) == "cpu"
