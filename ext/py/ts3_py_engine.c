/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The type Engine: construction, its end, drain(). Ownership and threads: see ts3_py_engine.h. */
#include "ts3_py_engine.h"

#include <string.h>
#include <time.h>
#include <unistd.h>

enum { DRAIN_BATCH = 32 };

/* ---- pending requests ---- */

void ts3_py_engine_pending_free(struct ts3_py_engine *self, struct ts3_py_pending *pending)
{
    if (pending->previous) {
        pending->previous->next = pending->next;
    } else {
        self->pending = pending->next;
    }
    if (pending->next) {
        pending->next->previous = pending->previous;
    }
    PyBuffer_Release(&pending->body);
    Py_XDECREF(pending->into);
    Py_XDECREF(pending->strip);
    PyMem_Free(pending);
}

struct ts3_py_pending *ts3_py_engine_pending_new(struct ts3_py_engine *self)
{
    struct ts3_py_pending *pending = PyMem_Calloc(1, sizeof(*pending));
    if (!pending) {
        PyErr_NoMemory();
        return NULL;
    }
    pending->next = self->pending;
    if (self->pending) {
        self->pending->previous = pending;
    }
    self->pending = pending;
    return pending;
}

/* ---- construction ---- */

struct construction {
    const char *endpoint;
    const char *region;
    const char *bucket;
    int path_style;
    const char *ca_file;
    const char *proxy;
    unsigned int max_connections;
    unsigned int max_queue;
    Py_ssize_t budget_bytes;
    unsigned int workers;
    int sign_payload;
    unsigned int connect_ms;
    unsigned int retry_tokens;
};

static int construction_parse(struct construction *c, PyObject *args, PyObject *named)
{
    static char *names[] = {
        "endpoint", "region", "bucket", "path_style", "ca_file", "proxy",
        "max_connections", "max_queue", "buffer_budget_bytes", "workers",
        "sign_payload", "connect_ms", "retry_tokens", NULL,
    };
    *c = (struct construction){
        .path_style = 1,
        .proxy = "",
        .max_connections = 32,
        .max_queue = 1024,
        .budget_bytes = (Py_ssize_t)128 << 20,
        .workers = 2,
        .sign_payload = 1,
        .connect_ms = 10000,
    };
    if (!PyArg_ParseTupleAndKeywords(
            args, named, "|$ssspzsIInIpII:Engine", names, &c->endpoint, &c->region, &c->bucket,
            &c->path_style, &c->ca_file, &c->proxy, &c->max_connections, &c->max_queue,
            &c->budget_bytes, &c->workers, &c->sign_payload, &c->connect_ms, &c->retry_tokens)) {
        return -1;
    }
    if (!c->endpoint || !c->region || !c->bucket) {
        PyErr_SetString(PyExc_TypeError, "Engine() needs endpoint, region and bucket");
        return -1;
    }
    if (c->budget_bytes < 0) {
        PyErr_SetString(PyExc_ValueError, "buffer_budget_bytes must not be negative");
        return -1;
    }
    return 0;
}

static enum ts3_err construction_run(const struct construction *c, struct ts3_engine **engine,
                                     char *why, size_t why_size)
{
    struct ts3_engine_config config = {
        .endpoint = c->endpoint,
        .region = c->region,
        .bucket = c->bucket,
        .ca_file = c->ca_file,
        .proxy = c->proxy,
        .path_style = c->path_style != 0,
        .sign_payload = c->sign_payload != 0,
        .max_connections = c->max_connections,
        .max_queue = c->max_queue,
        .workers = c->workers,
        .connect_ms = c->connect_ms,
        .retry_tokens = c->retry_tokens,
        .buffer_budget_bytes = (size_t)c->budget_bytes,
    };
    return ts3_engine_new(&config, engine, why, why_size);
}

static void list_add(struct ts3_py_engine *self)
{
    self->next = self->state->engines;
    if (self->next) {
        self->next->previous = self;
    }
    self->state->engines = self;
}

static void list_remove(struct ts3_py_engine *self)
{
    if (self->previous) {
        self->previous->next = self->next;
    } else if (self->state->engines == self) {
        self->state->engines = self->next;
    }
    if (self->next) {
        self->next->previous = self->previous;
    }
    self->previous = NULL;
    self->next = NULL;
}

static PyObject *engine_new(PyTypeObject *type, PyObject *args, PyObject *named)
{
    struct construction c;
    if (construction_parse(&c, args, named) < 0) {
        return NULL;
    }
    struct ts3_py_engine *self = (struct ts3_py_engine *)type->tp_alloc(type, 0);
    if (!self) {
        return NULL;
    }
    self->state = PyType_GetModuleState(type);
    self->module = Py_XNewRef(PyType_GetModule(type));
    if (!self->state || self->state->exiting || ts3_py_module_finalizing()) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(self->state->engine_closed, "the interpreter is ending");
        }
        Py_DECREF(self);
        return NULL;
    }
    char why[256] = "";
    enum ts3_err err = construction_run(&c, &self->engine, why, sizeof(why));
    if (err != TS3_OK) {
        if (err == TS3_EINVAL && why[0]) {
            PyErr_SetString(PyExc_ValueError, why);
        } else {
            ts3_py_module_raise(self->state, err, why[0] ? why : "Engine");
        }
        self->engine = NULL;
        Py_DECREF(self);
        return NULL;
    }
    list_add(self);
    return (PyObject *)self;
}

/* ---- the end ---- */

/* Joins the threads with the GIL released. Every request ends; its events can still be drained. */
static enum ts3_err stop(struct ts3_py_engine *self)
{
    enum ts3_err err = TS3_OK;
    struct ts3_engine *engine = self->engine;
    if (engine) {
        Py_BEGIN_ALLOW_THREADS
        err = ts3_engine_close(engine); /* waits where another thread is closing it */
        Py_END_ALLOW_THREADS
    }
    self->stopped = true; /* also where garbage collection has taken the engine */
    return err;
}

/* What another thread is deallocating is in no list any more, and yet its threads must be gone. */
static void wait_for_releases(struct ts3_py_state *state)
{
    const struct timespec moment = {.tv_nsec = 1000000};
    while (state->releasing_pid == getpid() && atomic_load(&state->releasing) > 0) {
        Py_BEGIN_ALLOW_THREADS
        (void)nanosleep(&moment, NULL);
        Py_END_ALLOW_THREADS
    }
}

void ts3_py_engine_stop_all(struct ts3_py_state *state)
{
    struct ts3_py_engine *self = state->engines;
    while (self) {
        if (self->stopped) {
            self = self->next;
            continue;
        }
        Py_INCREF(self);
        (void)stop(self); /* in a forked child there is nothing to join, and nobody to tell */
        Py_DECREF(self);
        self = state->engines; /* while the GIL was released the list may have changed */
    }
    wait_for_releases(state);
}

/* Ends the engine, then what it was reading. */
static void release(struct ts3_py_engine *self)
{
    struct ts3_engine *engine = self->engine;
    self->engine = NULL;
    if (engine) {
        struct ts3_py_state *state = self->state;
        if (state->releasing_pid != getpid()) {
            state->releasing_pid = getpid();
            atomic_store(&state->releasing, 0);
        }
        atomic_fetch_add(&state->releasing, 1);
        Py_BEGIN_ALLOW_THREADS
        ts3_engine_free(engine);
        atomic_fetch_sub(&state->releasing, 1); /* the GIL may never come back at the end */
        Py_END_ALLOW_THREADS
    }
    if (self->holds) {
        self->holds = false;
        ts3_event_clear(&self->held);
    }
    Py_CLEAR(self->made);
    while (self->pending) {
        ts3_py_engine_pending_free(self, self->pending);
    }
}

static int engine_traverse(PyObject *object, visitproc visit, void *arg)
{
    struct ts3_py_engine *self = (struct ts3_py_engine *)object;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->module);
    Py_VISIT(self->made);
    for (struct ts3_py_pending *pending = self->pending; pending; pending = pending->next) {
        Py_VISIT(pending->body.obj);
    }
    return 0;
}

static int engine_clear(PyObject *object)
{
    struct ts3_py_engine *self = (struct ts3_py_engine *)object;
    if (self->pending) {
        release(self);
    }
    return 0;
}

static void engine_dealloc(PyObject *object)
{
    struct ts3_py_engine *self = (struct ts3_py_engine *)object;
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (self->state) {
        list_remove(self);
    }
    release(self);
    Py_XDECREF(self->module);
    type->tp_free(self);
    Py_DECREF(type);
}

/* ---- methods ---- */

struct ts3_engine *ts3_py_engine_get(struct ts3_py_engine *self)
{
    if (!self->engine) {
        PyErr_SetString(self->state->engine_closed, "the engine was closed");
    }
    return self->engine;
}

static PyObject *engine_close(PyObject *object, PyObject *Py_UNUSED(none))
{
    struct ts3_py_engine *self = (struct ts3_py_engine *)object;
    enum ts3_err err = stop(self);
    if (err != TS3_OK) {
        return ts3_py_module_raise(self->state, err, "close");
    }
    Py_RETURN_NONE;
}

static PyObject *engine_set_credentials(PyObject *object, PyObject *args, PyObject *named)
{
    static char *names[] = {"access_key_id", "secret", "token", NULL};
    struct ts3_py_engine *self = (struct ts3_py_engine *)object;
    const char *access_key_id = NULL;
    const char *secret = NULL;
    Py_ssize_t secret_size = 0;
    const char *token = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, named, "sy#|z:set_credentials", names, &access_key_id,
                                     &secret, &secret_size, &token) ||
        !ts3_py_engine_get(self)) {
        return NULL;
    }
    enum ts3_err err =
        ts3_engine_set_credentials(self->engine, access_key_id, secret, (size_t)secret_size, token);
    if (err != TS3_OK) {
        return ts3_py_module_raise(self->state, err, "set_credentials");
    }
    Py_RETURN_NONE;
}

static PyObject *engine_fileno(PyObject *object, PyObject *Py_UNUSED(none))
{
    struct ts3_py_engine *self = (struct ts3_py_engine *)object;
    if (!ts3_py_engine_get(self)) {
        return NULL;
    }
    int fd = ts3_engine_fd(self->engine);
    if (fd < 0) {
        return ts3_py_module_raise(self->state, TS3_EFORKED, "fileno");
    }
    return PyLong_FromLong(fd);
}

static PyObject *engine_window(PyObject *object, PyObject *args, PyObject *named)
{
    static char *names[] = {"", "whole", NULL};
    struct ts3_py_engine *self = (struct ts3_py_engine *)object;
    struct ts3_window *window = NULL;
    PyObject *size = NULL;
    PyObject *bytes = NULL;
    uint64_t size_bytes = 0;
    int whole = 0;
    if (!PyArg_ParseTupleAndKeywords(args, named, "O|$p:window", names, &size, &whole) ||
        ts3_py_args_number(size, "size", PY_SSIZE_T_MAX, &size_bytes) < 0 ||
        !ts3_py_engine_get(self)) {
        return NULL;
    }
    if (whole && size_bytes > 0) {
        bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size_bytes);
        if (!bytes) {
            return NULL;
        }
    }
    void *memory = bytes ? PyBytes_AS_STRING(bytes) : NULL;
    enum ts3_err err = ts3_window_new_over(self->engine, memory, (size_t)size_bytes, &window);
    if (err != TS3_OK) {
        Py_XDECREF(bytes);
        return ts3_py_module_raise(self->state, err, "window");
    }
    return ts3_py_window_make(self->state, window, bytes);
}

/* ---- requests ---- */

static PyObject *engine_cancel(PyObject *object, PyObject *id)
{
    struct ts3_py_engine *self = (struct ts3_py_engine *)object;
    uint64_t number = 0;
    if (!ts3_py_engine_get(self) || ts3_py_args_number(id, "id", UINT64_MAX, &number) < 0) {
        return NULL;
    }
    enum ts3_err err = ts3_engine_cancel(self->engine, number);
    if (err != TS3_OK && err != TS3_ECLOSED) {
        return ts3_py_module_raise(self->state, err, "cancel");
    }
    Py_RETURN_NONE;
}

/* ---- drain ---- */

/* Makes self->held into an Event and gives up what belongs to it; on failure it stays held, so that
 * no final event is ever lost for lack of memory. */
static PyObject *convert_held(struct ts3_py_engine *self)
{
    struct ts3_py_pending *pending = self->held.final ? self->held.user : NULL;
    struct ts3_str strip = {NULL, 0};
    if (pending && pending->strip && ts3_py_args_text(pending->strip, "strip", &strip) < 0) {
        return NULL;
    }
    self->converting = true;
    PyObject *event = ts3_py_convert_event(self->state, &self->held, strip);
    self->converting = false;
    if (!event) {
        return NULL;
    }
    self->holds = false;
    ts3_event_clear(&self->held);
    if (pending) {
        ts3_py_engine_pending_free(self, pending);
    }
    return event;
}

/* The next event, or NULL: with an exception for an error, without for none left. Making objects may
 * run the garbage collector, and so code that drains this engine again: that finds nothing. */
static PyObject *next_event(struct ts3_py_engine *self)
{
    if (self->converting) {
        return NULL;
    }
    if (self->made) {
        PyObject *event = self->made;
        self->made = NULL;
        return event;
    }
    if (!self->holds) {
        self->holds = ts3_engine_drain(self->engine, &self->held, 1) == 1;
    }
    return self->holds ? convert_held(self) : NULL;
}

static PyObject *engine_drain(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    struct ts3_py_engine *self = (struct ts3_py_engine *)object;
    uint64_t max = DRAIN_BATCH * 2;
    if (nargs > 1) {
        PyErr_SetString(PyExc_TypeError, "drain() takes at most one argument");
        return NULL;
    }
    if (!ts3_py_engine_get(self) ||
        (nargs == 1 && ts3_py_args_number(args[0], "max_events", PY_SSIZE_T_MAX, &max) < 0)) {
        return NULL;
    }
    PyObject *list = PyList_New(0);
    while (list && (uint64_t)PyList_GET_SIZE(list) < max) {
        PyObject *event = next_event(self);
        if (!event) {
            break;
        }
        if (PyList_Append(list, event) < 0) {
            self->made = event;
            break;
        }
        Py_DECREF(event);
    }
    if (list && PyList_GET_SIZE(list) > 0) {
        PyErr_Clear(); /* what could not be made is held, and tried again by the next call */
        return list;
    }
    if (list && !PyErr_Occurred() && ts3_engine_fd(self->engine) < 0) {
        ts3_py_module_raise(self->state, TS3_EFORKED, "drain");
    }
    if (PyErr_Occurred()) {
        Py_CLEAR(list);
    }
    return list;
}

/* The engine's numbers; false with an exception set, which names the method. */
static bool read_stats(PyObject *object, struct ts3_engine_stats *stats, const char *method)
{
    struct ts3_py_engine *self = (struct ts3_py_engine *)object;
    if (!ts3_py_engine_get(self)) {
        return false;
    }
    enum ts3_err err = ts3_engine_stats(self->engine, stats);
    if (err != TS3_OK) {
        ts3_py_module_raise(self->state, err, method);
        return false;
    }
    return true;
}

static PyObject *engine_region(PyObject *object, PyObject *Py_UNUSED(none))
{
    struct ts3_engine_stats stats;
    if (!read_stats(object, &stats, "region")) {
        return NULL;
    }
    return PyUnicode_FromString(stats.region);
}

static PyObject *engine_stats(PyObject *object, PyObject *Py_UNUSED(none))
{
    struct ts3_engine_stats stats;
    if (!read_stats(object, &stats, "stats")) {
        return NULL;
    }
    const struct {
        const char *name;
        uint64_t number;
    } numbers[] = {
        {"requests_get", stats.requests[TS3_GET]},
        {"requests_head", stats.requests[TS3_HEAD]},
        {"requests_put", stats.requests[TS3_PUT]},
        {"requests_post", stats.requests[TS3_POST]},
        {"requests_delete", stats.requests[TS3_DELETE]},
        {"attempts", stats.attempts},
        {"retries", stats.retries},
        {"retries_denied", stats.retries_denied},
        {"succeeded", stats.succeeded},
        {"failed", stats.failed},
        {"bytes_up", stats.bytes_up},
        {"bytes_down", stats.bytes_down},
        {"connections_opened", stats.connections_opened},
        {"connections_dropped_stale", stats.connections_dropped_stale},
        {"connections_open", stats.connections_open},
        {"queued", stats.queued},
        {"in_flight", stats.in_flight},
        {"undrained", stats.undrained},
        {"budget_used_bytes", stats.budget_used_bytes},
        {"budget_bytes", stats.budget_bytes},
        {"loop_turns", stats.loop_turns},
        {"loop_p999_us", stats.loop_p999_us},
        {"loop_max_us", stats.loop_max_us},
        {"loop_cpu_p999_us", stats.loop_cpu_p999_us},
        {"loop_cpu_max_us", stats.loop_cpu_max_us},
        {"skew_adopted", stats.skew_adopted ? 1 : 0},
    };
    PyObject *dict = Py_BuildValue("{sL}", "skew_s", (long long)stats.skew_s);
    for (size_t i = 0; dict && i < sizeof(numbers) / sizeof(*numbers); i++) {
        PyObject *number = PyLong_FromUnsignedLongLong(numbers[i].number);
        if (!number || PyDict_SetItemString(dict, numbers[i].name, number) < 0) {
            Py_CLEAR(dict);
        }
        Py_XDECREF(number);
    }
    return dict;
}

/* A cast through void (*)(void) is the one that compilers accept for another signature. */
#define AS_METHOD(function) ((PyCFunction)(void (*)(void))(function))

static PyMethodDef engine_methods[] = {
    {"set_credentials", AS_METHOD(engine_set_credentials), METH_VARARGS | METH_KEYWORDS,
     "set_credentials($self, /, access_key_id, secret, token=None)\n--\n\nSign attempts from now "
     "on with these."},
    {"fileno", engine_fileno, METH_NOARGS,
     "fileno($self, /)\n--\n\nReadable while drain() has events."},
    {"window", AS_METHOD(engine_window), METH_VARARGS | METH_KEYWORDS,
     "window($self, size, /, *, whole=False)\n--\n\nMemory for a download, charged to the budget."},
    {"submit", AS_METHOD(ts3_py_submit), METH_FASTCALL | METH_KEYWORDS,
     "submit($self, /, method, key, *, query=(), headers=(), body=None, into=None, offset=0, "
     "expect_etag=None, parse='none', max_answer_bytes=0, strip=None, priority=1, attempts=5, "
     "first_byte_ms=10000, stall_ms=20000, deadline_ms=0)"
     "\n--\n\nHand in a request; returns its id. Never blocks."},
    {"cancel", engine_cancel, METH_O,
     "cancel($self, id, /)\n--\n\nAsk for an early end; the final event still comes."},
    {"drain", AS_METHOD(engine_drain), METH_FASTCALL,
     "drain($self, max_events=64, /)\n--\n\nEvents that wait, oldest first."},
    {"region", engine_region, METH_NOARGS,
     "region($self, /)\n--\n\nThe region that requests are signed for."},
    {"stats", engine_stats, METH_NOARGS, "stats($self, /)\n--\n\nNumbers by name."},
    {"close", engine_close, METH_NOARGS,
     "close($self, /)\n--\n\nEnd every request and the threads; idempotent."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot engine_slots[] = {
    {Py_tp_doc, "Engine(*, endpoint, region, bucket, path_style=True, ca_file=None, proxy='', "
                "max_connections=32, max_queue=1024, buffer_budget_bytes=134217728, workers=2, "
                "sign_payload=True, connect_ms=10000, retry_tokens=0)\n--\n\nA connection pool, its "
                "thread, and its workers, for one bucket. See _native.pyi."},
    {Py_tp_new, engine_new},
    {Py_tp_dealloc, engine_dealloc},
    {Py_tp_traverse, engine_traverse},
    {Py_tp_clear, engine_clear},
    {Py_tp_methods, engine_methods},
    {0, NULL},
};

#if PY_VERSION_HEX >= 0x030A0000
#define ENGINE_FLAGS (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE)
#else
#define ENGINE_FLAGS (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC)
#endif

PyType_Spec ts3_py_engine_spec = {
    .name = "tahoe_s3._native.Engine",
    .basicsize = sizeof(struct ts3_py_engine),
    .flags = ENGINE_FLAGS,
    .slots = engine_slots,
};
