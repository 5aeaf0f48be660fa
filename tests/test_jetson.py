"""What a Jetson tells, read from trees of files that look like those of the boards under old and new kernels."""

from pathlib import Path

import pytest

from edgelean.sensors.jetson import GpuClock, jetson_conditions, look_at_jetson, moved_clock

NANO_CONF = """
# the rest of this file is about files of the kernel
< PARAM TYPE=CLOCK NAME=GPU >
MAX_FREQ /sys/devices/platform/17000000.gpu/devfreq_dev/max_freq

< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
CPU_A78_0 MAX_FREQ 1497600
GPU MIN_FREQ 0
GPU MAX_FREQ 612000000
EMC MAX_FREQ 2133000000

< POWER_MODEL ID=1 NAME=25W >
GPU MAX_FREQ 918000000

< POWER_MODEL NAME=MAXN_SUPER ID=2 >
GPU MAX_FREQ -1

< PM_CONFIG DEFAULT=1 >
"""
NANO_CLOCKS = "306000000 408000000 510000000 612000000 714000000 816000000 918000000 1020000000"


def write(root: Path, files: dict[str, str]) -> Path:
    for path, text in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def device_tree(model: str, *compatible: str) -> dict[str, str]:
    return {
        "proc/device-tree/model": model + "\0",
        "proc/device-tree/compatible": "".join(f"{name}\0" for name in compatible),
    }


def gpu(folder: str, now: int, least: int, most: int) -> dict[str, str]:
    """The files of a GPU's clock, in MHz."""
    clocks = {"cur": now, "min": least, "max": most}
    return {f"sys/class/devfreq/{folder}/{name}_freq": f"{mhz}000000\n" for name, mhz in clocks.items()}


def zones(**celsius: float) -> dict[str, str]:
    files = {}
    for number, (kind, value) in enumerate(celsius.items()):
        files[f"sys/class/thermal/thermal_zone{number}/type"] = kind.replace("_", "-") + "\n"
        files[f"sys/class/thermal/thermal_zone{number}/temp"] = f"{value * 1000:.0f}\n"
    return files


def orin_nano(root: Path, mode: int = 1, most: int = 918, now: int = 306, least: int = 306) -> Path:
    """JetPack 6.2."""
    return write(
        root,
        device_tree(
            "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
            "nvidia,p3768-0000+p3767-0005-super", "nvidia,p3767-0005", "nvidia,tegra234",
        )
        | gpu("17000000.gpu", now, least, most)
        | zones(cpu_thermal=48.5, gpu_thermal=47.25, tj_thermal=50.0)
        | {
            "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
            "etc/nvpmodel.conf": NANO_CONF,
            "var/lib/nvpmodel/status": f"pmode:{mode:04} fmode:fan_mode_quiet\n",
            "sys/class/devfreq/17000000.gpu/available_frequencies": NANO_CLOCKS + "\n",
            "sys/devices/platform/bus@0/17000000.gpu/load": "842\n",
        },
    )  # fmt: skip


def agx_orin_on_jetpack_5(root: Path) -> Path:
    return write(
        root,
        device_tree(
            "NVIDIA Jetson AGX Orin Developer Kit", "nvidia,p3737-0000+p3701-0000", "nvidia,p3701-0000",
            "nvidia,tegra234",
        )
        | gpu("17000000.ga10b", 1300, 1300, 1300)
        | zones(CPU_therm=51.0, GPU_therm=47.6)
        | {
            "etc/nv_tegra_release": "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref\n",
            "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\nGPU MAX_FREQ -1\n",
            "var/lib/nvpmodel/status": "pmode:0000",
            "sys/devices/platform/gpu.0/load": "120\n",
            "sys/kernel/debug/bpmp/debug/clk/emc/rate": "3199000000\n",
        },
    )  # fmt: skip


def xavier(root: Path) -> Path:
    return write(
        root,
        device_tree("NVIDIA Jetson Xavier NX Developer Kit", "nvidia,p3509-0000+p3668-0000", "nvidia,tegra194")
        | gpu("17000000.gv11b", 1109, 114, 1109)
        | {
            "etc/nv_tegra_release": "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref\n",
            "etc/nvpmodel.conf": "< POWER_MODEL ID=2 NAME=MODE_15W_6CORE >\nGPU MAX_FREQ 1109250000\n",
            "var/lib/nvpmodel/status": "pmode:0002",
            "sys/devices/gpu.0/load": "765\n",
        },
    )


def thor(root: Path) -> Path:
    return write(
        root,
        device_tree("NVIDIA Jetson AGX Thor Developer Kit", "nvidia,p4071-0000+p3834-0008", "nvidia,tegra264")
        | gpu("gpu-nvd-0", 1692, 315, 1692)
        | gpu("gpu-gpc-0", 1575, 315, 1575)
        | {"etc/nv_tegra_release": "# R38 (release), REVISION: 4.0, GCID: 1, BOARD: generic\n"}
        | {"sys/class/devfreq/gpu-gpc-0/device/load": "30\n"},
    )


@pytest.mark.parametrize(
    ("board", "l4t", "jetpack", "clock", "load", "power_mode"),
    [
        (orin_nano, "36.4.3", "6.2", GpuClock(306, 306, 918), 0.842, "25W (mode 1), GPU up to 918 MHz"),
        (agx_orin_on_jetpack_5, "35.4.1", "5.1", GpuClock(1300, 1300, 1300), 0.12, "MAXN (mode 0), GPU up to 1300 MHz"),
        (xavier, "35.4.1", "5.1", GpuClock(1109, 114, 1109), 0.765, "MODE_15W_6CORE (mode 2), GPU up to 1109 MHz"),
        (thor, "38.4.0", "7.1", GpuClock(1575, 315, 1575), 0.03, "GPU up to 1575 MHz"),
    ],
)
def test_jetson_tells_version_clock_load_and_power_mode(tmp_path, board, l4t, jetpack, clock, load, power_mode):
    jetson = look_at_jetson(board(tmp_path))
    assert (jetson.l4t, jetson.jetpack, jetson.gpu, jetson.gpu_load) == (l4t, jetpack, clock, load)
    assert jetson.power_mode == power_mode
    assert jetson.model.startswith("NVIDIA Jetson")
    assert jetson.compatible[-1].startswith("nvidia,tegra")


def test_machine_that_is_no_jetson_has_none(tmp_path):
    assert look_at_jetson(tmp_path) is None
    pi = device_tree("Raspberry Pi 5 Model B Rev 1.0", "raspberrypi,5-model-b", "brcm,bcm2712")
    assert look_at_jetson(write(tmp_path, pi)) is None


@pytest.mark.parametrize(
    ("release", "jetpack"),
    [
        ("# R36 (release), REVISION: 3.0, GCID: 1", "6.0"),
        ("# R36 (release), REVISION: 4.0, GCID: 1", "6.1"),
        ("# R36 (release), REVISION: 4.7, GCID: 1", "6.2.1"),
        ("# R36 (release), REVISION: 5.0, GCID: 1", "6.2.2"),
        ("# R39 (release), REVISION: 2.1, GCID: 1", "7.2.1"),
        ("# R32 (release), REVISION: 7.3, GCID: 1", "4.6"),
        ("# R36 (release), REVISION: 44.0, GCID: 1", ""),
        ("# R99 (release), REVISION: 1.0, GCID: 1", ""),
    ],
)
def test_jetpack_is_named_by_its_linux_and_an_unknown_one_is_not_guessed(tmp_path, release, jetpack):
    orin_nano(tmp_path)
    jetson = look_at_jetson(write(tmp_path, {"etc/nv_tegra_release": release}))
    assert jetson.jetpack == jetpack
    assert jetson.l4t


@pytest.mark.parametrize(
    ("mode", "most", "words"),
    [
        (0, 612, "15W (mode 0), GPU up to 612 MHz"),
        (2, 1020, "MAXN_SUPER (mode 2), GPU up to 1020 MHz"),
        (7, 612, "mode 7, GPU up to 612 MHz"),
        (
            0,
            1020,
            "GPU up to 1020 MHz (nvpmodel's file says 15W (mode 0), which would be 612 MHz: the file is stale)",
        ),
        (
            2,
            612,
            "GPU up to 612 MHz (nvpmodel's file says MAXN_SUPER (mode 2), which would be 1020 MHz: the file is stale)",
        ),
    ],
)
def test_power_mode_is_believed_only_where_the_limit_of_the_gpu_agrees(tmp_path, mode, most, words):
    assert look_at_jetson(orin_nano(tmp_path, mode, most)).power_mode == words


@pytest.mark.parametrize("shown", [612, 700])
def test_limit_between_two_clocks_is_not_stale_however_the_kernel_shows_it(tmp_path, shown):
    orin_nano(tmp_path, mode=0, most=shown)
    conf = NANO_CONF.replace("GPU MAX_FREQ 612000000", "GPU MAX_FREQ 700000000")
    jetson = look_at_jetson(write(tmp_path, {"etc/nvpmodel.conf": conf}))
    assert jetson.power_mode == f"15W (mode 0), GPU up to {shown} MHz"


def test_container_without_the_files_of_nvpmodel_tells_the_limit_of_the_gpu(tmp_path):
    orin_nano(tmp_path)
    (tmp_path / "etc/nvpmodel.conf").unlink()
    assert look_at_jetson(tmp_path).power_mode == "mode 1, GPU up to 918 MHz"
    (tmp_path / "var/lib/nvpmodel/status").unlink()
    (tmp_path / "etc/nv_tegra_release").unlink()
    jetson = look_at_jetson(tmp_path)
    assert jetson.power_mode == "GPU up to 918 MHz"
    assert (jetson.l4t, jetson.jetpack) == ("", "")


def test_jetson_that_shows_nothing_but_its_name_is_told_as_such(tmp_path):
    jetson = look_at_jetson(write(tmp_path, device_tree("NVIDIA Jetson X", "nvidia,tegra999")))
    assert (jetson.gpu, jetson.gpu_load, jetson.memory_mhz, jetson.power_mode) == (None, None, None, "")
    assert jetson_conditions(jetson, jetson) == {"machine": "NVIDIA Jetson X"}
    assert moved_clock(jetson, jetson) == ""


def test_zone_of_a_sleeping_gpu_has_no_temperature(tmp_path):
    orin_nano(tmp_path)
    write(tmp_path, {"sys/class/thermal/thermal_zone1/temp": "-256000\n"})
    (tmp_path / "sys/class/thermal/thermal_zone2/temp").unlink()
    assert look_at_jetson(tmp_path).temperatures_c == {"cpu-thermal": 48.5}


@pytest.mark.parametrize(("was", "now", "moved"), [(306, 918, True), (918, 898, True), (918, 903, False)])
def test_clock_that_moves_by_more_than_two_percent_names_the_command_that_holds_it(tmp_path, was, now, moved):
    before = look_at_jetson(orin_nano(tmp_path, now=was))
    after = look_at_jetson(orin_nano(tmp_path, now=now))
    said = moved_clock(before, after)
    assert (said != "") == moved
    if moved:
        assert f"from {was} to {now} MHz" in said
        assert "sudo jetson_clocks" in said


def test_conditions_name_what_a_reading_was_taken_under(tmp_path):
    before, after = look_at_jetson(orin_nano(tmp_path)), look_at_jetson(orin_nano(tmp_path, now=510))
    words = jetson_conditions(before, after)
    assert words["gpu clock"] == "306 to 510 MHz, may be 306 to 918 MHz"
    assert words["l4t"] == "36.4.3 (JetPack 6.2)"
    assert words["power mode"] == "25W (mode 1), GPU up to 918 MHz"
    assert words["gpu load"] == "84 %"
    assert "memory clock" not in words, "only root may read it"


def test_locked_clock_and_the_clock_of_the_memory_are_said(tmp_path):
    jetson = look_at_jetson(agx_orin_on_jetpack_5(tmp_path))
    words = jetson_conditions(jetson, jetson)
    assert words["gpu clock"] == "1300 MHz, locked"
    assert words["memory clock"] == "3199 MHz"
