/* A CUDA runtime whose GPU is the memory of this process, and which tells what it still holds. */
#include <stdlib.h>
#include <string.h>
static int held, lost;
int cudaStreamCreate(void **stream) { *stream = (void *)77; return 0; }
int cudaMalloc(void **place, size_t n) { held++; *place = malloc(n); return lost ? 2 : 0; }
int cudaFree(void *place) { held--; free(place); return 0; }
int cudaMemcpyAsync(void *to, const void *from, size_t n, int way, void *stream) {
    if ((way != 1 && way != 2) || stream != (void *)77) return 1;
    memcpy(to, from, n);
    return 0;
}
int cudaStreamSynchronize(void *stream) { return stream == (void *)77 ? 0 : 1; }
const char *cudaGetErrorString(int code) { return code == 2 ? "out of memory" : "invalid argument"; }
int fake_held(void) { return held; }
void fake_lose(int yes) { lost = yes; }
