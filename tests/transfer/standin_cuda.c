// A stand-in for the CUDA driver, for tests without a GPU: device memory is a memfd, which another process opens through /proc. It is
// compiled against cuda.h, so a function whose signature differs from the driver's does not compile. It is as strict as a driver may be:
// a call without a context fails, a process cannot open its own memory, and a copy is done only when its stream is waited for.
#define _GNU_SOURCE
#include <cuda.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MOST 4096

typedef struct { CUdeviceptr base; size_t size; int fd; } Memory;  // fd: -1 of another's
typedef struct Copy { void *to; const void *at; size_t size; struct Copy *next; } Copy;
struct CUstream_st { Copy *first, *last; };

static Memory memory[MOST];
static int streams, copies;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static __thread int depth;
static int context;

static Memory *held(CUdeviceptr base) {
    for (int i = 0; i < MOST; i++)
        if (memory[i].base && memory[i].base == base) return &memory[i];
    return 0;
}

static CUresult keep(void *at, size_t size, int fd, CUdeviceptr *found) {
    if (at == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
    for (int i = 0; i < MOST; i++)
        if (!memory[i].base) {
            memory[i] = (Memory){(CUdeviceptr)at, size, fd};
            *found = memory[i].base;
            return CUDA_SUCCESS;
        }
    return CUDA_ERROR_OUT_OF_MEMORY;
}

static CUresult drop(CUdeviceptr base, int own) {
    Memory *found = held(base);
    if (!found || (found->fd >= 0) != own) return CUDA_ERROR_INVALID_VALUE;
    munmap((void *)found->base, found->size);
    if (own) close(found->fd);
    found->base = 0;
    return CUDA_SUCCESS;
}

#define NEEDS_CONTEXT if (!depth) return CUDA_ERROR_INVALID_CONTEXT
#define LOCKED(result) do { pthread_mutex_lock(&lock); CUresult r = (result); pthread_mutex_unlock(&lock); return r; } while (0)

int standin_live(void) {
    int count = streams;
    for (int i = 0; i < MOST; i++) count += memory[i].base != 0;
    return count;
}
int standin_copies(void) { return copies; }

CUresult cuInit(unsigned int flags) { return flags ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int *count) { *count = 1; return CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) { *device = 7; return ordinal ? CUDA_ERROR_INVALID_DEVICE : CUDA_SUCCESS; }
CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice device) {
    if (device != 7) return CUDA_ERROR_INVALID_DEVICE;
    memcpy(uuid->bytes, "standin of tests", 16);
    return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext *made, CUdevice device) {
    *made = (CUcontext)&context;
    return device == 7 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}
CUresult cuCtxPushCurrent(CUcontext given) {
    if (given != (CUcontext)&context) return CUDA_ERROR_INVALID_CONTEXT;
    depth++;
    return CUDA_SUCCESS;
}
CUresult cuCtxPopCurrent(CUcontext *was) {
    NEEDS_CONTEXT;
    *was = (CUcontext)&context;
    depth--;
    return CUDA_SUCCESS;
}
CUresult cuMemAlloc(CUdeviceptr *made, size_t size) {
    NEEDS_CONTEXT;
    int fd = memfd_create("standin", 0);
    if (fd < 0 || ftruncate(fd, size)) return CUDA_ERROR_OUT_OF_MEMORY;
    LOCKED(keep(mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), size, fd, made));
}
CUresult cuMemFree(CUdeviceptr base) { NEEDS_CONTEXT; LOCKED(drop(base, 1)); }
CUresult cuIpcGetMemHandle(CUipcMemHandle *handle, CUdeviceptr base) {
    NEEDS_CONTEXT;
    pthread_mutex_lock(&lock);
    Memory *found = held(base);
    memset(handle->reserved, 0, CU_IPC_HANDLE_SIZE);
    if (found) snprintf(handle->reserved, CU_IPC_HANDLE_SIZE, "%d %d", getpid(), found->fd);
    pthread_mutex_unlock(&lock);
    return found ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
CUresult cuIpcOpenMemHandle(CUdeviceptr *made, CUipcMemHandle handle, unsigned int flags) {
    NEEDS_CONTEXT;
    int process, number, fd;
    char path[64], text[CU_IPC_HANDLE_SIZE + 1] = {0};
    struct stat found;
    memcpy(text, handle.reserved, CU_IPC_HANDLE_SIZE);
    if (flags != CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS || sscanf(text, "%d %d", &process, &number) != 2) return CUDA_ERROR_INVALID_VALUE;
    if (process == getpid()) return CUDA_ERROR_INVALID_CONTEXT;
    snprintf(path, sizeof path, "/proc/%d/fd/%d", process, number);
    if ((fd = open(path, O_RDWR)) < 0) return CUDA_ERROR_INVALID_HANDLE;
    if (fstat(fd, &found)) return CUDA_ERROR_INVALID_HANDLE;
    void *at = mmap(0, found.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    LOCKED(keep(at, found.st_size, -1, made));
}
CUresult cuIpcCloseMemHandle(CUdeviceptr base) { NEEDS_CONTEXT; LOCKED(drop(base, 0)); }
CUresult cuMemGetAddressRange(CUdeviceptr *base, size_t *size, CUdeviceptr at) {
    NEEDS_CONTEXT;
    pthread_mutex_lock(&lock);
    Memory *found = held(at);
    if (found) *base = found->base, *size = found->size;
    pthread_mutex_unlock(&lock);
    return found ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
CUresult cuStreamCreate(CUstream *made, unsigned int flags) {
    NEEDS_CONTEXT;
    if (flags != CU_STREAM_NON_BLOCKING) return CUDA_ERROR_INVALID_VALUE;
    *made = calloc(1, sizeof **made);
    __sync_fetch_and_add(&streams, 1);
    return CUDA_SUCCESS;
}
CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr at, size_t size, CUstream stream) {
    NEEDS_CONTEXT;
    Copy *copy = malloc(sizeof *copy);
    *copy = (Copy){(void *)to, (const void *)at, size, 0};
    if (stream->last) stream->last->next = copy;
    else stream->first = copy;
    stream->last = copy;
    return CUDA_SUCCESS;
}
CUresult cuStreamSynchronize(CUstream stream) {
    NEEDS_CONTEXT;
    for (Copy *copy = stream->first, *next; copy; copy = next) {
        memcpy(copy->to, copy->at, copy->size);
        next = copy->next;
        free(copy);
        __sync_fetch_and_add(&copies, 1);
    }
    stream->first = stream->last = 0;
    return CUDA_SUCCESS;
}
CUresult cuStreamDestroy(CUstream stream) {
    NEEDS_CONTEXT;
    cuStreamSynchronize(stream);
    free(stream);
    __sync_fetch_and_add(&streams, -1);
    return CUDA_SUCCESS;
}
CUresult cuGetErrorName(CUresult error, const char **text) {
    static const struct { CUresult code; const char *name; } names[] = {
        {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},   {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
        {CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"}, {CUDA_ERROR_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE"},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].code == error) {
            *text = names[i].name;
            return CUDA_SUCCESS;
        }
    return CUDA_ERROR_INVALID_VALUE;
}
