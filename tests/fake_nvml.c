/* A libnvidia-ml.so.1 for tests: two GPUs on a clock that the test moves.
 *
 * fake_set("power_mw", 60000) sets what both draw from now on; "tick_s" the period of the energy counter;
 * "no_counter", "no_field_186", "mig", "count" and "lost" (every call fails from now on) what they can do.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, GPU_IS_LOST = 15 };

static double now_s, exact_mj, shown_mj, last_tick_s;
static double power_mw, tick_s, no_counter, no_field_186, mig, count, lost;
static int gpus[2] = {0, 1};

void fake_reset(void) {
    now_s = last_tick_s = 0;
    exact_mj = shown_mj = 1e6;
    power_mw = 60000;
    tick_s = 0.1;
    count = 1;
    no_counter = no_field_186 = mig = lost = 0;
}

void fake_set(const char *name, double value) {
    struct { const char *name; double *place; } all[] = {
        {"power_mw", &power_mw}, {"tick_s", &tick_s}, {"no_counter", &no_counter},
        {"no_field_186", &no_field_186}, {"mig", &mig}, {"count", &count}, {"lost", &lost}};
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++)
        if (!strcmp(name, all[i].name)) *all[i].place = value;
}

double fake_now(void) { return now_s; }

/* The counter shows at each tick what was used up to that tick. */
void fake_advance(double seconds) {
    double end = now_s + seconds;
    while (last_tick_s + tick_s <= end) {
        double tick = last_tick_s + tick_s;
        exact_mj += power_mw * (tick - now_s);
        now_s = last_tick_s = tick;
        shown_mj = exact_mj;
    }
    exact_mj += power_mw * (end - now_s);
    now_s = end;
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; return SUCCESS; }
const char *nvmlErrorString(int code) { return code == NOT_SUPPORTED ? "Not Supported" : "GPU is lost"; }
int nvmlSystemGetDriverVersion(char *text, unsigned n) { snprintf(text, n, "590.48.01"); return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = (unsigned)count; return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **gpu) {
    if (i >= count) return INVALID_ARGUMENT;
    *gpu = &gpus[i];
    return SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **gpu) {
    for (int i = 0; i < count; i++) {
        char own[16];
        snprintf(own, sizeof own, "GPU-%d", i);
        if (!strcmp(uuid, own)) { *gpu = &gpus[i]; return SUCCESS; }
    }
    return NOT_FOUND;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *id, void **gpu) {
    for (int i = 0; i < count; i++) {
        char own[16];
        snprintf(own, sizeof own, "0000:0%d:00.0", i);
        if (!strcmp(id, own)) { *gpu = &gpus[i]; return SUCCESS; }
    }
    return NOT_FOUND;
}

int nvmlDeviceGetName(int *gpu, char *text, unsigned n) { snprintf(text, n, "NVIDIA Fake %d", *gpu); return SUCCESS; }
int nvmlDeviceGetUUID(int *gpu, char *text, unsigned n) { snprintf(text, n, "GPU-%d", *gpu); return SUCCESS; }

int nvmlDeviceGetMigMode(void *gpu, unsigned *current, unsigned *pending) {
    (void)gpu;
    *current = *pending = (unsigned)mig;
    return SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(void *gpu, unsigned long long *mj) {
    (void)gpu;
    if (lost) return GPU_IS_LOST;
    if (no_counter) return NOT_SUPPORTED;
    *mj = (unsigned long long)shown_mj;
    return SUCCESS;
}

typedef struct {
    uint32_t field, scope;
    int64_t timestamp, latency;
    int type, result;
    union { double d; unsigned u; unsigned long long ull; } value;
} Field;

int nvmlDeviceGetFieldValues(void *gpu, int n, Field *fields) {
    (void)gpu;
    if (lost) return GPU_IS_LOST;
    for (int i = 0; i < n; i++) {
        fields[i].result = fields[i].field == 186 && !no_field_186 ? SUCCESS : NOT_SUPPORTED;
        fields[i].value.u = (unsigned)power_mw;
    }
    return SUCCESS;
}
