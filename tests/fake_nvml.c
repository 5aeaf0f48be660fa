/* A libnvidia-ml.so.1 for tests: up to four GPUs on a clock that the test moves.
 *
 * fake_reset()                 everything as new: one GPU at 60 W, time 0
 * fake_advance(seconds)        the clock moves on, what the GPUs use is counted
 * fake_now()                   the clock
 * fake_name(gpu, "NVIDIA ...") the name of one GPU
 * fake_fail("call", code)      this call returns this NVML error from now on, 0 ends it; "nvmlDeviceGetFieldValues 186"
 *                              is one field, "nvmlInitWithFlags" the start, "device" every call about a device
 * fake_set("knob", value)      what all GPUs do from now on:
 *   power_mw        what they draw
 *   tick_s          period of the energy counter, which shows at each tick what was used up to it
 *   frozen          1: the energy counter and the powers stand still, whatever is drawn
 *   drop_counter    the energy counter starts again at 0, as after a restart of the driver
 *   power_tick_s    period of the power readings
 *   seen_s          field 186 is the mean over so long before each of its ticks (25 ms: an A100 or H100)
 *   average_s       field 185 and nvmlDeviceGetPowerUsage are the mean over so long (1 s: Ampere and newer)
 *   gain            the powers read so many times what is drawn, the counter does not
 *   sm_mhz, max_sm_mhz, memory_mhz, temperature_c, power_limit_mw, throttle (bits of the reasons)
 *   power_held_s, heat_held_s    for so long the power limit, or heat, held the clock down
 *   count, mig      how many GPUs there are, whether they are cut into slices
 *   reverse_pci     1: the last GPU of the list is on the first PCI bus
 *   lost            1: every call about a device fails, the GPU is lost; lost_at_s: from this time on
 *   no_counter, no_field_186, no_average    1: this GPU cannot tell it (error 3)
 *   real_time       1: the clock moves on by itself, with the time of the machine
 *   forget          as after a fork: calls fail with error 1 until NVML is started again, old handles stay invalid
 *
 * A real fork does what "forget" does: another process has to start NVML itself.
 */
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, GPU_IS_LOST = 15 };
enum { GPUS = 4, STEPS = 1 << 16, FAILURES = 16 };

typedef struct { int number; unsigned generation; } Gpu;

static Gpu gpus[GPUS];
static char names[GPUS][96];
static double now_s, exact_mj, shown_mj, last_tick_s;
static double power_mw, tick_s, frozen, drop_counter, power_tick_s, seen_s, average_s, gain;
static double sm_mhz, max_sm_mhz, memory_mhz, temperature_c, power_limit_mw, throttle, power_held_s, heat_held_s;
static double count, mig, reverse_pci, lost, lost_at_s, no_counter, no_field_186, no_average, forget;
static double real_time, looked_s, frozen_s, first_mw;
static struct { double from_s, mw, mj; } steps[STEPS]; /* the power from a time on, and what was used before it */
static unsigned n_steps, generation;
static struct { char call[64]; int code; } failures[FAILURES];
static pid_t started_by;

static void step(void) {
    double mj = 0;
    if (n_steps) mj = steps[n_steps - 1].mj + steps[n_steps - 1].mw * (now_s - steps[n_steps - 1].from_s);
    if (n_steps && steps[n_steps - 1].from_s == now_s) n_steps--;
    steps[n_steps].from_s = now_s;
    steps[n_steps].mw = power_mw;
    steps[n_steps].mj = mj;
    if (n_steps < STEPS - 1) n_steps++;
}

static double used_mj(double at_s) {
    unsigned i = n_steps;
    while (i > 1 && steps[i - 1].from_s > at_s) i--;
    return steps[i - 1].mj + steps[i - 1].mw * (at_s - steps[i - 1].from_s);
}

/* Mean power in mW over a window that ends at the last tick of the power readings. */
static double mean_mw(double window_s) {
    double end = floor((frozen ? frozen_s : now_s) / power_tick_s + 1e-9) * power_tick_s;
    double begin = end - window_s;
    return gain * (begin < 0 ? first_mw : (used_mj(end) - used_mj(begin)) / window_s);
}

void fake_reset(void) {
    now_s = last_tick_s = 0;
    exact_mj = shown_mj = 1e6;
    power_mw = first_mw = 60000;
    tick_s = power_tick_s = 0.1;
    seen_s = 0.025;
    average_s = gain = 1;
    sm_mhz = 1410;
    max_sm_mhz = 1980;
    memory_mhz = 1593;
    temperature_c = 45;
    power_limit_mw = 400000;
    count = 1;
    lost_at_s = INFINITY;
    frozen = mig = reverse_pci = lost = no_counter = no_field_186 = no_average = forget = real_time = throttle = 0;
    power_held_s = heat_held_s = 0;
    started_by = 0;
    n_steps = 0;
    memset(failures, 0, sizeof failures);
    step();
    for (int i = 0; i < GPUS; i++) {
        gpus[i].number = i;
        gpus[i].generation = generation;
        snprintf(names[i], sizeof names[i], "NVIDIA Fake %d", i);
    }
}

static double machine_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void fake_set(const char *name, double value) {
    struct { const char *name; double *place; } all[] = {
        {"power_mw", &power_mw}, {"tick_s", &tick_s}, {"frozen", &frozen}, {"drop_counter", &drop_counter},
        {"power_tick_s", &power_tick_s}, {"seen_s", &seen_s}, {"average_s", &average_s}, {"gain", &gain},
        {"sm_mhz", &sm_mhz},
        {"max_sm_mhz", &max_sm_mhz}, {"memory_mhz", &memory_mhz}, {"temperature_c", &temperature_c},
        {"power_limit_mw", &power_limit_mw}, {"throttle", &throttle}, {"power_held_s", &power_held_s},
        {"heat_held_s", &heat_held_s}, {"count", &count}, {"mig", &mig},
        {"reverse_pci", &reverse_pci}, {"lost", &lost}, {"lost_at_s", &lost_at_s}, {"no_counter", &no_counter},
        {"no_field_186", &no_field_186}, {"no_average", &no_average}, {"forget", &forget},
        {"real_time", &real_time}};
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++)
        if (!strcmp(name, all[i].name)) *all[i].place = value;
    if (!strcmp(name, "power_mw")) {
        if (now_s == 0) first_mw = value;
        step();
    }
    if (!strcmp(name, "frozen")) frozen_s = now_s;
    if (!strcmp(name, "real_time")) looked_s = machine_s();
    if (!strcmp(name, "drop_counter")) exact_mj = shown_mj = 0;
}

void fake_name(int gpu, const char *name) { snprintf(names[gpu], sizeof names[gpu], "%s", name); }

void fake_fail(const char *call, int code) {
    for (int i = 0; i < FAILURES; i++)
        if (!failures[i].call[0] || !strcmp(failures[i].call, call)) {
            snprintf(failures[i].call, sizeof failures[i].call, "%s", call);
            failures[i].code = code;
            return;
        }
}

double fake_now(void) { return now_s; }

void fake_advance(double seconds) {
    double end = now_s + seconds;
    while (last_tick_s + tick_s <= end) {
        double tick = last_tick_s + tick_s;
        exact_mj += power_mw * (tick - now_s);
        now_s = last_tick_s = tick;
        if (!frozen) shown_mj = exact_mj;
    }
    exact_mj += power_mw * (end - now_s);
    now_s = end;
}

static int failure(const char *call) {
    for (int i = 0; i < FAILURES && failures[i].call[0]; i++)
        if (failures[i].code && !strcmp(failures[i].call, call)) return failures[i].code;
    return SUCCESS;
}

static int forgotten(void) { return forget || (started_by && started_by != getpid()); }

/* The error of a call about one device, 0 where it works. */
static int trouble(const char *call, const Gpu *gpu) {
    if (real_time) {
        double before_s = looked_s;
        looked_s = machine_s();
        fake_advance(looked_s - before_s);
    }
    if (forgotten()) return UNINITIALIZED;
    if (gpu && gpu->generation != generation) return INVALID_ARGUMENT;
    if (lost || now_s >= lost_at_s) return GPU_IS_LOST;
    return failure("device") ? failure("device") : failure(call);
}

#define DEVICE(gpu) do { int code = trouble(__func__, gpu); if (code) return code; } while (0)

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    if (failure(__func__)) return failure(__func__);
    if (forgotten()) generation++;
    forget = 0;
    started_by = getpid();
    return SUCCESS;
}

int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int code) {
    switch (code) {
    case UNINITIALIZED: return "Uninitialized";
    case NOT_SUPPORTED: return "Not Supported";
    case 4: return "Insufficient Permissions";
    case NOT_FOUND: return "Not Found";
    case 9: return "Driver Not Loaded";
    case GPU_IS_LOST: return "GPU is lost";
    case 18: return "Driver/library version mismatch";
    case 27: return "System is not in ready state";
    default: return "Unknown Error";
    }
}

int nvmlSystemGetDriverVersion(char *text, unsigned n) { snprintf(text, n, "590.48.01"); return SUCCESS; }

int nvmlDeviceGetCount_v2(unsigned *n) {
    if (forgotten()) return UNINITIALIZED;
    *n = (unsigned)count;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **gpu) {
    if (forgotten()) return UNINITIALIZED;
    if (i >= count) return INVALID_ARGUMENT;
    gpus[i].generation = generation;
    *gpu = &gpus[i];
    return SUCCESS;
}

static int bus_of(int gpu) { return reverse_pci ? (int)count - 1 - gpu : gpu; }

static void uuid_of(int gpu, char *text, unsigned n) { snprintf(text, n, "GPU-%d", gpu); }

int nvmlDeviceGetHandleByUUID(const char *uuid, void **gpu) {
    for (int i = 0; i < count; i++) {
        char own[16];
        uuid_of(i, own, sizeof own);
        if (!strcmp(uuid, own)) return nvmlDeviceGetHandleByIndex_v2((unsigned)i, gpu);
    }
    return NOT_FOUND;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *id, void **gpu) {
    for (int i = 0; i < count; i++) {
        char own[16];
        snprintf(own, sizeof own, "0000:0%d:00.0", bus_of(i));
        if (!strcmp(id, own)) return nvmlDeviceGetHandleByIndex_v2((unsigned)i, gpu);
    }
    return NOT_FOUND;
}

typedef struct {
    char legacy[16];
    unsigned domain, bus, device, id, subsystem;
    char text[32];
} Pci;

int nvmlDeviceGetPciInfo_v3(Gpu *gpu, Pci *pci) {
    DEVICE(gpu);
    memset(pci, 0, sizeof *pci);
    pci->bus = (unsigned)bus_of(gpu->number);
    snprintf(pci->legacy, sizeof pci->legacy, "0000:0%d:00.0", bus_of(gpu->number));
    snprintf(pci->text, sizeof pci->text, "00000000:0%d:00.0", bus_of(gpu->number));
    return SUCCESS;
}

int nvmlDeviceGetName(Gpu *gpu, char *text, unsigned n) {
    DEVICE(gpu);
    snprintf(text, n, "%s", names[gpu->number]);
    return SUCCESS;
}

int nvmlDeviceGetUUID(Gpu *gpu, char *text, unsigned n) {
    DEVICE(gpu);
    uuid_of(gpu->number, text, n);
    return SUCCESS;
}

int nvmlDeviceGetMigMode(Gpu *gpu, unsigned *current, unsigned *pending) {
    DEVICE(gpu);
    *current = *pending = (unsigned)mig;
    return SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(Gpu *gpu, unsigned long long *mj) {
    DEVICE(gpu);
    if (no_counter) return NOT_SUPPORTED;
    *mj = (unsigned long long)shown_mj;
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(Gpu *gpu, unsigned *mw) {
    DEVICE(gpu);
    if (no_average) return NOT_SUPPORTED;
    *mw = (unsigned)mean_mw(average_s);
    return SUCCESS;
}

typedef struct {
    uint32_t field, scope;
    int64_t timestamp, latency;
    int type, result;
    union { double d; unsigned u; unsigned long long ull; } value;
} Field;

int nvmlDeviceGetFieldValues(Gpu *gpu, int n, Field *fields) {
    DEVICE(gpu);
    for (int i = 0; i < n; i++) {
        char call[64];
        int known = (fields[i].field == 186 && !no_field_186) || (fields[i].field == 185 && !no_average);
        snprintf(call, sizeof call, "%s %u", __func__, fields[i].field);
        fields[i].result = failure(call) ? failure(call) : known ? SUCCESS : NOT_SUPPORTED;
        fields[i].type = 1;
        fields[i].value.u = (unsigned)mean_mw(fields[i].field == 186 ? seen_s : average_s);
    }
    return SUCCESS;
}

static int told(double value, unsigned *place) { *place = (unsigned)value; return SUCCESS; }

/* 0 is the clock of graphics, 1 of the multiprocessors, 2 of the memory. */
int nvmlDeviceGetClockInfo(Gpu *gpu, int clock, unsigned *mhz) {
    DEVICE(gpu);
    return told(clock == 2 ? memory_mhz : sm_mhz, mhz);
}

int nvmlDeviceGetMaxClockInfo(Gpu *gpu, int clock, unsigned *mhz) {
    DEVICE(gpu);
    return told(clock == 2 ? memory_mhz : max_sm_mhz, mhz);
}

int nvmlDeviceGetTemperature(Gpu *gpu, int sensor, unsigned *celsius) {
    DEVICE(gpu);
    (void)sensor;
    return told(temperature_c, celsius);
}

typedef struct { unsigned version; int sensor, celsius; } Temperature;

int nvmlDeviceGetTemperatureV(Gpu *gpu, Temperature *asked) {
    DEVICE(gpu);
    asked->celsius = (int)temperature_c;
    return SUCCESS;
}

static int reasons(Gpu *gpu, const char *call, unsigned long long *bits) {
    int code = trouble(call, gpu);
    *bits = (unsigned long long)throttle;
    return code;
}

int nvmlDeviceGetCurrentClocksEventReasons(Gpu *gpu, unsigned long long *bits) { return reasons(gpu, __func__, bits); }
int nvmlDeviceGetCurrentClocksThrottleReasons(Gpu *gpu, unsigned long long *bits) {
    return reasons(gpu, __func__, bits);
}

int nvmlDeviceGetPowerManagementLimit(Gpu *gpu, unsigned *mw) { DEVICE(gpu); return told(power_limit_mw, mw); }
int nvmlDeviceGetEnforcedPowerLimit(Gpu *gpu, unsigned *mw) { DEVICE(gpu); return told(power_limit_mw, mw); }

typedef struct { unsigned long long reference_us, violation_ns; } Violation;

/* Policy 0 is the power limit, 1 is heat. */
int nvmlDeviceGetViolationStatus(Gpu *gpu, int policy, Violation *status) {
    DEVICE(gpu);
    if (policy > 1) return NOT_SUPPORTED;
    status->reference_us = (unsigned long long)(now_s * 1e6);
    status->violation_ns = (unsigned long long)((policy ? heat_held_s : power_held_s) * 1e9);
    return SUCCESS;
}
