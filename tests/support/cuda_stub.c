/* A libcuda.so.1 that computes nothing; NVIDIA's cuda.bindings load it in place of the driver on machines without a GPU.

It implements the functions called by fastmlp/engines/cuda/runtime.py, with the driver's signatures. Device memory is host
memory, so copies work; kernels do not run, but each launch is recorded with its arguments. Error checking is at least as strict
as the driver's: unknown or released handles and handles of another context are errors, and after a kernel fault every call
fails. Not thread-safe.

For tests: the functions stub_*() below, and environment variables with a function name without suffix (cuStreamSynchronize):
            CUDA_STUB_HANG=NAME       the function never returns
            CUDA_STUB_FAIL=NAME:CODE  the function does nothing and returns this error

Source: CUDA Driver API 13, chapter 6. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int Result;
typedef uint64_t Address;
enum {
    SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101,
    INVALID_IMAGE = 200, INVALID_CONTEXT = 201, NO_BINARY_FOR_GPU = 209, INVALID_HANDLE = 400, NOT_FOUND = 500,
    ILLEGAL_ADDRESS = 700, LAUNCH_TIMEOUT = 702, EXCEPTION = 715, LAUNCH_FAILED = 719, COOPERATIVE_LAUNCH_TOO_LARGE = 720
};
enum Kind { CONTEXT, STREAM, MODULE, FUNCTION, MEMORY, GRAPH, NODE, EXEC, KINDS };
enum How { PLAIN, COOPERATIVE, IN_A_GRAPH };
enum Needs { NOTHING, DRIVER, CURRENT }; /* a function requires nothing, cuInit, or a current context */
enum { PROCESSORS = 132, THREADS = 2048, PARAMETERS = 4096 /* bytes */, MOST = 512, DEPTH = 64 };
static const size_t TOTAL_MEMORY = (size_t)128 << 30; /* bytes, as reported for the card */
static const size_t ALLOCATABLE = (size_t)4 << 30;    /* bytes that can be allocated */

/* Offsets and sizes of a kernel's parameters; count is -1 if unknown. */
typedef struct Layout { char entry[1024]; int count, offset[MOST], size[MOST]; struct Layout *next; } Layout;
/* Any object with a handle. Never freed, so that handles are not reused. */
typedef struct Object {
    enum Kind kind;
    int gone, record;                /* record: index of a node's record */
    struct Object *context, *owner;  /* owner: the graph of a node */
    const Layout *layout;            /* of a function */
    void *memory;
    size_t bytes;
    struct Object *next;
} Object;
/* A launch or a graph node; after: record of the preceding node, or -1. Python relies on the order of the fields. */
typedef struct {
    const Layout *layout;
    unsigned shape[7]; /* grid, block, bytes of shared memory */
    int how, after;
    unsigned char bytes[PARAMETERS]; /* parameters at their offsets, as passed to the kernel */
} Record;

static Object *objects, *stack[DEPTH];
static Layout *layouts;
static Record *records;
static int depth, started, fault, recorded;
static size_t used;

static long *count_of(const char *name); /* defined after the table of functions */

/* Start of every function: count the call, and fail if requested or if the state does not allow the call. */
static Result begin(const char *name, enum Needs needs) {
    const char *hang = getenv("CUDA_STUB_HANG"), *fail = getenv("CUDA_STUB_FAIL");
    size_t length = strlen(name);
    ++*count_of(name);
    while (hang && !strcmp(hang, name)) pause();
    if (fail && !strncmp(fail, name, length) && fail[length] == ':') {
        int code = atoi(fail + length + 1);
        if (code == ILLEGAL_ADDRESS || code == LAUNCH_TIMEOUT || (code >= EXCEPTION && code <= LAUNCH_FAILED)) fault = code;
        return code;
    }
    if (needs != NOTHING && !started) return NOT_INITIALIZED;
    if (needs == CURRENT && fault) return fault;
    return needs == CURRENT && !depth ? INVALID_CONTEXT : SUCCESS;
}
#define BEGIN(needs) do { Result wrong = begin(__func__, needs); if (wrong) return wrong; } while (0)

static Object *current(void) { return depth ? stack[depth - 1] : NULL; }

static Object *make(enum Kind kind) {
    Object *made = calloc(1, sizeof *made);
    made->kind = kind, made->context = current(), made->next = objects;
    return objects = made;
}

/* The live object of a handle with this kind and the current context, or NULL. */
static Object *find(enum Kind kind, const void *handle) {
    for (Object *one = objects; one; one = one->next)
        if (one == handle && one->kind == kind && !one->gone && (kind == CONTEXT || one->context == current())) return one;
    return NULL;
}

/* The allocation that contains an address range, or NULL. */
static Object *holder(Address first, size_t bytes) {
    for (Object *one = objects; one; one = one->next)
        if (one->kind == MEMORY && !one->gone && one->context == current() && first >= (Address)one->memory
            && bytes <= one->bytes && first - (Address)one->memory <= one->bytes - bytes) return one;
    return NULL;
}

/* ---- driver and device */

static Result cuInit(unsigned flags) { BEGIN(NOTHING); started = 1; return flags ? INVALID_VALUE : SUCCESS; }
static Result cuDriverGetVersion(int *version) { BEGIN(NOTHING); *version = 13000; return SUCCESS; }
static Result cuDeviceGet(int *device, int ordinal) { BEGIN(DRIVER); *device = 0; return ordinal ? INVALID_DEVICE : SUCCESS; }

static Result cuDeviceGetAttribute(int *value, int attribute, int device) {
    BEGIN(DRIVER);
    switch (attribute) {
    case 13: *value = 1980000; break; /* CLOCK_RATE, in kHz */
    case 16: *value = PROCESSORS; break;
    case 75: *value = 9; break; /* COMPUTE_CAPABILITY_MAJOR and _MINOR */
    case 76: *value = 0; break;
    default: return INVALID_VALUE;
    }
    return device ? INVALID_DEVICE : SUCCESS;
}

static Result cuDeviceGetName(char *name, int length, int device) {
    BEGIN(DRIVER);
    snprintf(name, length, "STUB H200");
    return device ? INVALID_DEVICE : SUCCESS;
}

static Result cuDeviceTotalMem(size_t *bytes, int device) {
    BEGIN(DRIVER);
    *bytes = TOTAL_MEMORY;
    return device ? INVALID_DEVICE : SUCCESS;
}

#define ERROR(code, text) {code, "CUDA_ERROR_" #code, text}
static Result error_text(int error, int name, const char **text) {
    static const struct { int code; const char *name, *text; } known[] = {
        {SUCCESS, "CUDA_SUCCESS", "no error"}, ERROR(INVALID_VALUE, "invalid argument"),
        ERROR(OUT_OF_MEMORY, "out of memory"), ERROR(NOT_INITIALIZED, "initialization error"),
        ERROR(NO_DEVICE, "no CUDA-capable device is detected"), ERROR(INVALID_DEVICE, "invalid device ordinal"),
        ERROR(INVALID_IMAGE, "device kernel image is invalid"), ERROR(INVALID_CONTEXT, "invalid device context"),
        ERROR(NO_BINARY_FOR_GPU, "no kernel image is available"), ERROR(INVALID_HANDLE, "invalid resource handle"),
        ERROR(NOT_FOUND, "named symbol not found"), ERROR(ILLEGAL_ADDRESS, "illegal memory access"),
        ERROR(LAUNCH_FAILED, "unspecified launch failure"), ERROR(COOPERATIVE_LAUNCH_TOO_LARGE, "too many blocks")};
    *text = NULL;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].code == error) *text = name ? known[i].name : known[i].text;
    return *text ? SUCCESS : INVALID_VALUE;
}
static Result cuGetErrorString(int error, const char **text) { BEGIN(NOTHING); return error_text(error, 0, text); }
static Result cuGetErrorName(int error, const char **text) { BEGIN(NOTHING); return error_text(error, 1, text); }

/* ---- contexts and streams */

static Result cuDevicePrimaryCtxRetain(void **context, int device) {
    static Object *primary;
    BEGIN(DRIVER);
    if (device) return INVALID_DEVICE;
    *context = primary = primary ? primary : make(CONTEXT);
    return SUCCESS;
}

static Result cuCtxPushCurrent(void *context) {
    BEGIN(DRIVER);
    if (fault) return fault;
    if (!find(CONTEXT, context)) return INVALID_HANDLE;
    if (depth == DEPTH) return INVALID_VALUE;
    stack[depth++] = context;
    return SUCCESS;
}

static Result cuCtxPopCurrent(void **context) {
    BEGIN(DRIVER);
    if (!depth) return INVALID_CONTEXT;
    *context = stack[--depth];
    return fault;
}

static Result cuCtxGetCurrent(void **context) { BEGIN(DRIVER); *context = current(); return SUCCESS; }

static Result cuStreamCreate(void **stream, unsigned flags) {
    BEGIN(CURRENT);
    if (flags > 1) return INVALID_VALUE;
    *stream = make(STREAM);
    return SUCCESS;
}

static Result cuStreamSynchronize(void *stream) { BEGIN(CURRENT); return find(STREAM, stream) ? SUCCESS : INVALID_HANDLE; }

/* ---- memory */

static Result cuMemAlloc(Address *address, size_t bytes) {
    BEGIN(CURRENT);
    if (!bytes) return INVALID_VALUE;
    void *memory = bytes > ALLOCATABLE - used ? NULL : malloc(bytes);
    if (!memory) return OUT_OF_MEMORY;
    Object *made = make(MEMORY);
    made->memory = memset(memory, 0xff, bytes); /* NaN as float32 */
    made->bytes = bytes, used += bytes, *address = (Address)memory;
    return SUCCESS;
}

static Result cuMemFree(Address address) {
    BEGIN(CURRENT);
    Object *found = holder(address, 1);
    if (!found || (Address)found->memory != address) return INVALID_VALUE;
    free(found->memory);
    found->gone = 1, used -= found->bytes;
    return SUCCESS;
}

static Result cuMemGetInfo(size_t *unused, size_t *whole) {
    BEGIN(CURRENT);
    *unused = ALLOCATABLE - used, *whole = TOTAL_MEMORY;
    return SUCCESS;
}

static Result cuMemcpyHtoD(Address target, const void *source, size_t bytes) {
    BEGIN(CURRENT);
    if (!source || !holder(target, bytes)) return INVALID_VALUE;
    memcpy((void *)target, source, bytes);
    return SUCCESS;
}

static Result cuMemcpyDtoH(void *target, Address source, size_t bytes) {
    BEGIN(CURRENT);
    if (!target || !holder(source, bytes)) return INVALID_VALUE;
    memcpy(target, (const void *)source, bytes);
    return SUCCESS;
}

/* ---- kernels */

static Result cuModuleLoadData(void **module, const void *image) {
    BEGIN(CURRENT);
    if (!image || memcmp(image, "\177ELF", 4)) return INVALID_IMAGE;
    *module = make(MODULE);
    return SUCCESS;
}

/* Once stub_expect has been called, kernels without a known layout are not found. */
static Result cuModuleGetFunction(void **function, void *module, const char *entry) {
    BEGIN(CURRENT);
    if (!find(MODULE, module)) return INVALID_HANDLE;
    Layout *layout = layouts;
    while (layout && strcmp(layout->entry, entry)) layout = layout->next;
    if (!layout && layouts) return NOT_FOUND;
    if (!layout) {
        layout = calloc(1, sizeof *layout), layout->count = -1;
        snprintf(layout->entry, sizeof layout->entry, "%s", entry);
    }
    Object *made = make(FUNCTION);
    made->layout = layout, *function = made;
    return SUCCESS;
}

/* Check and record a launch; only the bytes of its parameters are read. */
static Result record(enum How how, const void *function, const unsigned *shape, void **parameters, void **extra, int after) {
    Object *found = find(FUNCTION, function);
    if (!found) return INVALID_HANDLE;
    unsigned long long blocks = 1, threads = 1;
    for (int i = 0; i < 3; i++) blocks *= shape[i], threads *= shape[3 + i];
    if (extra || !blocks || !threads || threads > 1024 || (!parameters && found->layout->count > 0)) return INVALID_VALUE;
    if (how == COOPERATIVE && blocks > PROCESSORS * (THREADS / threads)) return COOPERATIVE_LAUNCH_TOO_LARGE;
    records = realloc(records, (recorded + 1) * sizeof *records);
    Record *made = &records[recorded++];
    memset(made, 0, sizeof *made);
    made->layout = found->layout, made->how = how, made->after = after;
    memcpy(made->shape, shape, sizeof made->shape);
    for (int i = 0; i < found->layout->count; i++)
        memcpy(made->bytes + found->layout->offset[i], parameters[i], found->layout->size[i]);
    return SUCCESS;
}

#define GEOMETRY unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared
static Result cuLaunchKernel(void *function, GEOMETRY, void *stream, void **parameters, void **extra) {
    BEGIN(CURRENT);
    unsigned shape[7] = {gx, gy, gz, bx, by, bz, shared};
    return find(STREAM, stream) ? record(PLAIN, function, shape, parameters, extra, -1) : INVALID_HANDLE;
}

static Result cuLaunchCooperativeKernel(void *function, GEOMETRY, void *stream, void **parameters) {
    BEGIN(CURRENT);
    unsigned shape[7] = {gx, gy, gz, bx, by, bz, shared};
    return find(STREAM, stream) ? record(COOPERATIVE, function, shape, parameters, NULL, -1) : INVALID_HANDLE;
}

/* ---- graphs */

/* CUDA_KERNEL_NODE_PARAMS_v2 */
typedef struct { void *function; unsigned shape[7]; void **parameters, **extra, *kernel, *context; } NodeParameters;

static Result cuGraphCreate(void **graph, unsigned flags) {
    BEGIN(DRIVER);
    if (flags) return INVALID_VALUE;
    *graph = make(GRAPH);
    return SUCCESS;
}

static Result cuGraphAddKernelNode(void **node, void *graph, void *const *before, size_t count, const NodeParameters *what) {
    BEGIN(CURRENT);
    Object *owner = find(GRAPH, graph), *last = count ? find(NODE, before[count - 1]) : NULL;
    if (!owner) return INVALID_HANDLE;
    if (count > 1 || (count && (!last || last->owner != owner)) || what->kernel) return INVALID_VALUE; /* chains only */
    Result wrong = record(IN_A_GRAPH, what->function, what->shape, what->parameters, what->extra, last ? last->record : -1);
    if (wrong) return wrong;
    Object *made = make(NODE);
    made->owner = owner, made->record = recorded - 1, *node = made;
    return SUCCESS;
}

static Result cuGraphInstantiate(void **exec, void *graph, unsigned long long flags) {
    BEGIN(CURRENT);
    if (!find(GRAPH, graph)) return INVALID_HANDLE;
    if (flags) return INVALID_VALUE;
    *exec = make(EXEC);
    return SUCCESS;
}

static Result drop(Object *found) { if (found) found->gone = 1; return found ? SUCCESS : INVALID_VALUE; }
static Result cuGraphExecDestroy(void *exec) { BEGIN(CURRENT); return drop(find(EXEC, exec)); }

static Result cuGraphDestroy(void *graph) {
    BEGIN(DRIVER);
    for (Object *one = objects; one; one = one->next)
        if (one->kind == NODE && one->owner == graph) one->gone = 1;
    return drop(find(GRAPH, graph));
}

static Result cuGraphLaunch(void *exec, void *stream) {
    BEGIN(CURRENT);
    return find(EXEC, exec) && find(STREAM, stream) ? SUCCESS : INVALID_HANDLE;
}

/* ---- lookup by the bindings: by name, and by the first version of CUDA that has the signature above */

static Result cuGetProcAddress(const char *name, void **function, int version, uint64_t flags, int *status);
#define ROW(name, since) {#name, since, (void *)name, 0}
static struct { const char *name; int since; void *function; long calls; } table[] = {
    ROW(cuInit, 2000), ROW(cuDriverGetVersion, 2020), ROW(cuDeviceGet, 2000), ROW(cuDeviceGetAttribute, 2000),
    ROW(cuDeviceGetName, 2000), ROW(cuDeviceTotalMem, 3020), ROW(cuGetErrorString, 6000), ROW(cuGetErrorName, 6000),
    ROW(cuDevicePrimaryCtxRetain, 7000), ROW(cuCtxPushCurrent, 4000), ROW(cuCtxPopCurrent, 4000), ROW(cuCtxGetCurrent, 4000),
    ROW(cuStreamCreate, 2000), ROW(cuStreamSynchronize, 2000), ROW(cuMemAlloc, 3020), ROW(cuMemFree, 3020),
    ROW(cuMemGetInfo, 3020), ROW(cuMemcpyHtoD, 3020), ROW(cuMemcpyDtoH, 3020), ROW(cuModuleLoadData, 2000),
    ROW(cuModuleGetFunction, 2000), ROW(cuLaunchKernel, 4000), ROW(cuLaunchCooperativeKernel, 9000), ROW(cuGraphCreate, 10000),
    ROW(cuGraphAddKernelNode, 12000), ROW(cuGraphInstantiate, 12000),
    {"cuGraphInstantiateWithFlags", 11040, (void *)cuGraphInstantiate, 0}, ROW(cuGraphDestroy, 10000),
    ROW(cuGraphExecDestroy, 10000), ROW(cuGraphLaunch, 10000), ROW(cuGetProcAddress, 12000)};
enum { FUNCTIONS = sizeof table / sizeof *table };

static long *count_of(const char *name) {
    static long none;
    for (int i = 0; i < FUNCTIONS; i++) if (!strcmp(table[i].name, name)) return &table[i].calls;
    return none = 0, &none;
}

static Result cuGetProcAddress(const char *name, void **function, int version, uint64_t flags, int *status) {
    (void)flags; /* selects the default stream, which is not used */
    *function = NULL;
    if (status) *status = 1; /* no such symbol */
    for (int i = 0; i < FUNCTIONS; i++)
        if (!strcmp(table[i].name, name)) {
            if (version >= table[i].since) *function = table[i].function;
            if (status) *status = version >= table[i].since ? 0 : 2; /* 2: the requested version is too old */
        }
    return *function ? SUCCESS : NOT_FOUND;
}
Result cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *status) {
    return cuGetProcAddress(name, function, version, flags, status);
}

/* ---- for tests */

/* Number of calls of a function. */
long stub_calls(const char *name) { return *count_of(name); }

/* Number of live objects of a kind (enum Kind). */
int stub_live(int kind) {
    int found = 0;
    for (Object *one = objects; one; one = one->next) found += (int)one->kind == kind && !one->gone;
    return found;
}

/* Set the parameter layout of a kernel before its lookup; 0 if it exceeds the capacity. */
int stub_expect(const char *entry, const int *offsets, const int *sizes, int count) {
    Layout *made = calloc(1, sizeof *made);
    if (count > MOST || strlen(entry) >= sizeof made->entry) return 0;
    for (int i = 0; i < count; i++) {
        if (offsets[i] < 0 || sizes[i] < 0 || offsets[i] + sizes[i] > PARAMETERS) return 0;
        made->offset[i] = offsets[i], made->size[i] = sizes[i];
    }
    strcpy(made->entry, entry), made->count = count, made->next = layouts, layouts = made;
    return 1;
}

int stub_recorded(void) { return recorded; }
const Record *stub_record(int number) { return number >= 0 && number < recorded ? &records[number] : NULL; }
void *stub_other_context(void) { return make(CONTEXT); }

/* Clear the fault and the records. */
void stub_forget(void) { fault = 0, recorded = 0; }
