/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The module tahoe_s3._native: its state, its life, its errors.
 *
 * Multi-phase initialisation, everything in the state of the module. One interpreter a process:
 * libcurl and OpenSSL are set up once a process and torn down never, so a subinterpreter's import
 * is refused with a sentence. The module asks for the GIL on free-threaded builds. At the
 * interpreter's end an atexit function joins the threads of every engine: a thread that opens a TLS
 * connection while the process exits crashes in OpenSSL. */
#include "ts3_py.h"

#include <curl/curl.h>
#include <errno.h>
#include <string.h>

#include "core/ts3_alloc.h"
#include "core/ts3_digest.h"
#include "xml/ts3_xml.h"

#if LIBCURL_VERSION_NUM < TS3_ENGINE_LIBCURL_NUM
#error "tahoe-s3 needs libcurl 7.87.0 or later (for CURLOPT_QUICK_EXIT)"
#endif

static const char MODULE[] = "tahoe_s3._native";

struct ts3_py_state *ts3_py_module_state(PyObject *module)
{
    return PyModule_GetState(module);
}

bool ts3_py_module_finalizing(void)
{
#if PY_VERSION_HEX >= 0x030D0000
    return Py_IsFinalizing() != 0;
#else
    return _Py_IsFinalizing() != 0;
#endif
}

PyObject *ts3_py_module_raise(const struct ts3_py_state *state, enum ts3_err err, const char *what)
{
    PyObject *type = state->engine_error;
    switch (err) {
    case TS3_ENOMEM:
        return PyErr_NoMemory();
    case TS3_EIO:
        return PyErr_SetFromErrno(PyExc_OSError);
    case TS3_EINVAL:
    case TS3_ELIMIT:
    case TS3_EXML:
        type = PyExc_ValueError;
        break;
    case TS3_EFULL:
        type = state->queue_full;
        break;
    case TS3_EBUDGET:
        type = state->budget_exhausted;
        break;
    case TS3_ECLOSED:
        type = state->engine_closed;
        break;
    case TS3_EFORKED:
        type = state->engine_forked;
        break;
    default:
        break;
    }
    return PyErr_Format(type, "%s: %s", what, ts3_err_text(err));
}

/* ---- making the state ---- */

static int refuse_subinterpreter(void)
{
    if (PyInterpreterState_Get() == PyInterpreterState_Main()) {
        return 0;
    }
    PyErr_SetString(PyExc_ImportError,
                    "tahoe_s3._native works in the main interpreter only, not in a subinterpreter");
    return -1;
}

static int set_up_libraries(void)
{
    const curl_version_info_data *info = curl_version_info(CURLVERSION_NOW);
    if (info->version_num < TS3_ENGINE_LIBCURL_NUM) {
        PyErr_Format(PyExc_ImportError, "tahoe-s3 needs libcurl %s or later, but found %s here",
                     TS3_ENGINE_LIBCURL_TEXT, info->version);
        return -1;
    }
    CURLcode code = curl_global_init(CURL_GLOBAL_DEFAULT);
    if (code != CURLE_OK) {
        PyErr_Format(PyExc_ImportError, "libcurl cannot be set up: %s", curl_easy_strerror(code));
        return -1;
    }
    ts3_xml_setup();
    return 0;
}

static int make_signer(struct ts3_py_state *state)
{
    const struct ts3_alloc *alloc = ts3_alloc_libc();
    ts3_sigv4_out_init(&state->signed_request, alloc);
    enum ts3_err err = ts3_digest_new(alloc, &state->digest);
    if (err == TS3_OK) {
        err = ts3_sigv4_new(alloc, state->digest, &state->signer);
    }
    if (err != TS3_OK) {
        PyErr_Format(PyExc_ImportError, "OpenSSL cannot be set up: %s", ts3_err_text(err));
        return -1;
    }
    return 0;
}

static int make_strings(PyObject **places, const char *const *texts, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        places[i] = PyUnicode_InternFromString(texts[i]);
        if (!places[i]) {
            return -1;
        }
    }
    return 0;
}

static int make_all_strings(struct ts3_py_state *state)
{
    static const char *const EMPTY[] = {""};
    static const char *const KINDS[TS3_PY_KINDS] = {
        [TS3_KIND_SERVICE] = "service",     [TS3_KIND_AUTH] = "auth",
        [TS3_KIND_TRANSPORT] = "transport", [TS3_KIND_TIMEOUT] = "timeout",
        [TS3_KIND_PROTOCOL] = "protocol",   [TS3_KIND_INTEGRITY] = "integrity",
        [TS3_KIND_CHANGED] = "changed",     [TS3_KIND_CANCELLED] = "cancelled",
        [TS3_KIND_CLOSED] = "closed",       [TS3_KIND_LOCAL] = "local",
    };
    static const char *const OUTCOMES[TS3_PY_OUTCOMES] = {"not_applied", "unknown"};
    static const char *const METHODS[TS3_METHOD_COUNT] = {"GET", "HEAD", "PUT", "POST", "DELETE"};
    static const char *const PARSES[TS3_PY_PARSES] = {"none",   "bytes",    "list", "deleted",
                                                      "create", "complete", "copy", "uploads"};
    static const char *const SIGN[TS3_PY_SIGN_ARGS] = {
        "method", "host",   "path",          "query",  "headers", "payload_sha256",
        "time_s", "region", "access_key_id", "secret", "service",
    };
    static const char *const SUBMIT[TS3_PY_SUBMIT_ARGS] = {
        "method",   "key",           "query",    "headers",          "body",  "into",
        "offset",   "expect_etag",   "parse",    "max_answer_bytes", "strip", "priority",
        "attempts", "first_byte_ms", "stall_ms", "deadline_ms",
    };
    if (make_strings(&state->empty, EMPTY, 1) < 0 ||
        make_strings(state->kinds, KINDS, TS3_PY_KINDS) < 0 ||
        make_strings(state->outcomes, OUTCOMES, TS3_PY_OUTCOMES) < 0 ||
        make_strings(state->methods, METHODS, TS3_METHOD_COUNT) < 0 ||
        make_strings(state->parses, PARSES, TS3_PY_PARSES) < 0 ||
        make_strings(state->sign_names, SIGN, TS3_PY_SIGN_ARGS) < 0 ||
        make_strings(state->submit_names, SUBMIT, TS3_PY_SUBMIT_ARGS) < 0) {
        return -1;
    }
    return 0;
}

struct row_spec {
    size_t place; /* of the PyTypeObject* in the state */
    const char *name;
    const char *fields;
    const char *doc;
};

static const struct row_spec ROWS[] = {
    {offsetof(struct ts3_py_state, entry_type), "Entry", "key size etag modified_s storage_class",
     "One object of a listing."},
    {offsetof(struct ts3_py_state, page_type), "Page", "entries prefixes next_token v1",
     "One page of a listing."},
    {offsetof(struct ts3_py_state, upload_type), "Upload", "key upload_id initiated_s",
     "A multipart upload under way."},
    {offsetof(struct ts3_py_state, uploads_type), "Uploads",
     "uploads next_key_marker next_upload_id_marker", "One page of multipart uploads."},
    {offsetof(struct ts3_py_state, failure_type), "Failure",
     "kind outcome status code message server_time_s region", "Why a request failed."},
    {offsetof(struct ts3_py_state, event_type), "Event",
     "id final failure status etag size modified_s server_time_s skew_s value request_id host_id "
     "attempts queued_us first_byte_us total_us bytes_up bytes_down",
     "What the engine has to say of a request."},
    {offsetof(struct ts3_py_state, file_region_type), "FileRegion", "fd offset length",
     "Bytes of an open file to be sent."},
    {offsetof(struct ts3_py_state, error_document_type), "ErrorDocument",
     "code message region request_id host_id server_time_s", "An error document of S3's."},
};

/* collections.namedtuple(name, fields, module=...), put into the state and the module. */
static int make_row(PyObject *module, PyObject *factory, const struct row_spec *row)
{
    PyObject *args = Py_BuildValue("(ss)", row->name, row->fields);
    PyObject *named = Py_BuildValue("{ss}", "module", MODULE);
    PyObject *type = args && named ? PyObject_Call(factory, args, named) : NULL;
    PyObject *doc = type ? PyUnicode_FromString(row->doc) : NULL;
    int result = -1;
    if (doc && PyObject_SetAttrString(type, "__doc__", doc) == 0) {
        char *base = PyModule_GetState(module);
        memcpy(base + row->place, &type, sizeof(type));
        result = PyModule_AddType(module, (PyTypeObject *)type);
        type = NULL; /* the state keeps the reference */
    }
    Py_XDECREF(args);
    Py_XDECREF(named);
    Py_XDECREF(type);
    Py_XDECREF(doc);
    return result;
}

static int make_rows(PyObject *module)
{
    PyObject *collections = PyImport_ImportModule("collections");
    PyObject *factory = collections ? PyObject_GetAttrString(collections, "namedtuple") : NULL;
    int result = factory ? 0 : -1;
    for (size_t i = 0; result == 0 && i < sizeof(ROWS) / sizeof(*ROWS); i++) {
        result = make_row(module, factory, &ROWS[i]);
    }
    Py_XDECREF(factory);
    Py_XDECREF(collections);
    return result;
}

static int make_exception(PyObject *module, PyObject **place, const char *name, const char *doc,
                          PyObject *base)
{
    char full_name[64];
    PyOS_snprintf(full_name, sizeof(full_name), "%s.%s", MODULE, name);
    *place = PyErr_NewExceptionWithDoc(full_name, doc, base, NULL);
    return *place ? PyModule_AddObjectRef(module, name, *place) : -1;
}

static int make_exceptions(PyObject *module, struct ts3_py_state *state)
{
    if (make_exception(module, &state->engine_error, "EngineError", "The engine refuses a call.",
                       NULL) < 0) {
        return -1;
    }
    const struct {
        PyObject **place;
        const char *name;
        const char *doc;
    } kinds[] = {
        {&state->engine_forked, "EngineForked", "The engine belongs to the parent process."},
        {&state->engine_closed, "EngineClosed", "The engine was closed."},
        {&state->queue_full, "QueueFull",
         "The engine has as many requests as it takes; drain() makes room."},
        {&state->budget_exhausted, "BudgetExhausted",
         "No memory left for a window; closing one makes room."},
    };
    for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++) {
        if (make_exception(module, kinds[i].place, kinds[i].name, kinds[i].doc,
                           state->engine_error) < 0) {
            return -1;
        }
    }
    return 0;
}

static int make_type(PyObject *module, PyTypeObject **place, PyType_Spec *spec)
{
    *place = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    return *place ? PyModule_AddType(module, *place) : -1;
}

/* ---- the end ---- */

static PyObject *stop_engines(PyObject *module, PyObject *Py_UNUSED(none))
{
    struct ts3_py_state *state = ts3_py_module_state(module);
    state->exiting = true;
    ts3_py_engine_stop_all(state);
    Py_RETURN_NONE;
}

static int register_at_exit(PyObject *module)
{
    PyObject *atexit = PyImport_ImportModule("atexit");
    PyObject *function = atexit ? PyObject_GetAttrString(module, "_stop_engines") : NULL;
    PyObject *done = function ? PyObject_CallMethod(atexit, "register", "O", function) : NULL;
    int result = done ? 0 : -1;
    Py_XDECREF(done);
    Py_XDECREF(function);
    Py_XDECREF(atexit);
    return result;
}

/* ---- the module ---- */

static int module_exec(PyObject *module)
{
    struct ts3_py_state *state = ts3_py_module_state(module);
    if (refuse_subinterpreter() < 0 || set_up_libraries() < 0 || make_signer(state) < 0 ||
        make_all_strings(state) < 0 || make_exceptions(module, state) < 0 ||
        make_rows(module) < 0 || make_type(module, &state->window_type, &ts3_py_window_spec) < 0 ||
        make_type(module, &state->engine_type, &ts3_py_engine_spec) < 0) {
        return -1;
    }
#if PY_VERSION_HEX < 0x030A0000
    state->window_type->tp_new = NULL;
#endif
    const curl_version_info_data *info = curl_version_info(CURLVERSION_NOW);
    if (PyModule_AddStringConstant(module, "LIBCURL_VERSION", info->version) < 0 ||
        PyModule_AddStringConstant(module, "TLS_VERSION",
                                   info->ssl_version ? info->ssl_version : "") < 0) {
        return -1;
    }
    return register_at_exit(module);
}

#define CLEAR_ALL(array)                                            \
    for (size_t i = 0; i < sizeof(array) / sizeof(*(array)); i++) { \
        Py_CLEAR((array)[i]);                                       \
    }

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    struct ts3_py_state *state = ts3_py_module_state(module);
    Py_VISIT(state->engine_type);
    Py_VISIT(state->window_type);
    for (size_t i = 0; i < sizeof(ROWS) / sizeof(*ROWS); i++) {
        PyObject *type;
        memcpy(&type, (char *)state + ROWS[i].place, sizeof(type));
        Py_VISIT(type);
    }
    Py_VISIT(state->engine_error);
    Py_VISIT(state->engine_forked);
    Py_VISIT(state->engine_closed);
    Py_VISIT(state->queue_full);
    Py_VISIT(state->budget_exhausted);
    return 0;
}

static int module_clear(PyObject *module)
{
    struct ts3_py_state *state = ts3_py_module_state(module);
    Py_CLEAR(state->engine_type);
    Py_CLEAR(state->window_type);
    for (size_t i = 0; i < sizeof(ROWS) / sizeof(*ROWS); i++) {
        PyObject *type;
        PyObject *const none = NULL;
        memcpy(&type, (char *)state + ROWS[i].place, sizeof(type));
        memcpy((char *)state + ROWS[i].place, &none, sizeof(none));
        Py_XDECREF(type);
    }
    Py_CLEAR(state->engine_error);
    Py_CLEAR(state->engine_forked);
    Py_CLEAR(state->engine_closed);
    Py_CLEAR(state->queue_full);
    Py_CLEAR(state->budget_exhausted);
    Py_CLEAR(state->empty);
    CLEAR_ALL(state->kinds)
    CLEAR_ALL(state->outcomes)
    CLEAR_ALL(state->methods)
    CLEAR_ALL(state->parses)
    CLEAR_ALL(state->sign_names)
    CLEAR_ALL(state->submit_names)
    return 0;
}

static void module_free(void *module)
{
    struct ts3_py_state *state = ts3_py_module_state(module);
    (void)module_clear(module);
    ts3_sigv4_free(state->signer);
    state->signer = NULL;
    ts3_sigv4_out_free(&state->signed_request);
    ts3_digest_free(state->digest);
    state->digest = NULL;
}

#define AS_METHOD(function) ((PyCFunction)(void (*)(void))(function))

static PyMethodDef module_methods[] = {
    {"sign", AS_METHOD(ts3_py_functions_sign), METH_FASTCALL | METH_KEYWORDS,
     "sign($module, /, *, method, host, path, query, headers, payload_sha256, time_s, region, "
     "access_key_id, secret, service='s3')\n--\n\nThe Authorization header of an S3 request."},
    {"parse_list", ts3_py_functions_parse_list, METH_O,
     "parse_list($module, document, /)\n--\n\nThe Page of a listing; ValueError for what is not a "
     "whole one."},
    {"parse_error", ts3_py_functions_parse_error, METH_O,
     "parse_error($module, document, /)\n--\n\nThe ErrorDocument of S3's answer; ValueError for "
     "what is not one."},
    {"_stop_engines", stop_engines, METH_NOARGS,
     "_stop_engines($module, /)\n--\n\nJoin the threads of every engine; called at the "
     "interpreter's end."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#if PY_VERSION_HEX >= 0x030D0000
    {Py_mod_gil, Py_MOD_GIL_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef module_def = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "tahoe_s3._native",
    .m_doc = "The engine of tahoe-s3: signing, transfers, parsing. See _native.pyi.",
    .m_size = sizeof(struct ts3_py_state),
    .m_methods = module_methods,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&module_def);
}
