/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Engine.submit(): from Python's arguments to a struct ts3_request_spec. */
#include "ts3_py_engine.h"

static int spec_numbers(PyObject **given, struct ts3_request_spec *spec)
{
    const struct {
        enum ts3_py_submit_arg arg;
        const char *what;
        uint32_t *place;
    } numbers[] = {
        {TS3_PY_SUBMIT_ATTEMPTS, "attempts", &spec->attempts},
        {TS3_PY_SUBMIT_FIRST_BYTE, "first_byte_ms", &spec->first_byte_ms},
        {TS3_PY_SUBMIT_STALL, "stall_ms", &spec->stall_ms},
        {TS3_PY_SUBMIT_DEADLINE, "deadline_ms", &spec->deadline_ms},
    };
    uint64_t number = 0;
    for (size_t i = 0; i < sizeof(numbers) / sizeof(*numbers); i++) {
        if (given[numbers[i].arg]) {
            if (ts3_py_args_number(given[numbers[i].arg], numbers[i].what, UINT32_MAX,
                                   &number) < 0) {
                return -1;
            }
            *numbers[i].place = (uint32_t)number;
        }
    }
    if (given[TS3_PY_SUBMIT_PRIORITY]) {
        if (ts3_py_args_number(given[TS3_PY_SUBMIT_PRIORITY], "priority", 2, &number) < 0) {
            return -1;
        }
        spec->priority = (int)number;
    }
    if (given[TS3_PY_SUBMIT_MAX_ANSWER]) {
        if (ts3_py_args_number(given[TS3_PY_SUBMIT_MAX_ANSWER], "max_answer_bytes", SIZE_MAX,
                               &number) < 0) {
            return -1;
        }
        spec->max_answer_bytes = (size_t)number;
    }
    if (given[TS3_PY_SUBMIT_OFFSET] &&
        ts3_py_args_number(given[TS3_PY_SUBMIT_OFFSET], "offset", INT64_MAX, &spec->offset) < 0) {
        return -1;
    }
    return 0;
}

static int spec_choices(struct ts3_py_state *state, PyObject **given, struct ts3_request_spec *spec)
{
    size_t choice = 0;
    if (ts3_py_args_choice(given[TS3_PY_SUBMIT_METHOD], state->methods, TS3_METHOD_COUNT, "method",
                           &choice) < 0) {
        return -1;
    }
    spec->method = (enum ts3_method)choice;
    if (given[TS3_PY_SUBMIT_PARSE]) {
        if (ts3_py_args_choice(given[TS3_PY_SUBMIT_PARSE], state->parses, TS3_PY_PARSES, "parse",
                               &choice) < 0) {
            return -1;
        }
        spec->parse = (enum ts3_parse)choice;
    }
    return 0;
}

/* None, a buffer, or a FileRegion. */
static int spec_body(struct ts3_py_state *state, PyObject *body, struct ts3_request_spec *spec,
                     Py_buffer *view)
{
    if (!body || body == Py_None) {
        return 0;
    }
    if (!Py_IS_TYPE(body, state->file_region_type)) {
        if (PyObject_GetBuffer(body, view, PyBUF_SIMPLE) < 0) {
            return -1;
        }
        spec->body_data = view->buf;
        spec->body_size = (size_t)view->len;
        return 0;
    }
    uint64_t fd = 0;
    uint64_t length = 0;
    if (ts3_py_args_number(PyTuple_GET_ITEM(body, 0), "fd", INT32_MAX, &fd) < 0 ||
        ts3_py_args_number(PyTuple_GET_ITEM(body, 1), "offset", INT64_MAX,
                           &spec->body_offset) < 0 ||
        ts3_py_args_number(PyTuple_GET_ITEM(body, 2), "length", PY_SSIZE_T_MAX, &length) < 0) {
        return -1;
    }
    spec->body_fd = (int)fd;
    spec->body_size = (size_t)length;
    return 0;
}

/* Surrogates in a str stand for bytes that were no UTF-8; *kept owns what key points into. */
static int spec_key(PyObject *value, struct ts3_request_spec *spec, PyObject **kept)
{
    if (PyUnicode_Check(value) && !PyUnicode_IS_ASCII(value)) {
        *kept = PyUnicode_AsEncodedString(value, "utf-8", "surrogateescape");
        value = *kept;
        if (!value) {
            return -1;
        }
    }
    struct ts3_str key;
    if (ts3_py_args_text(value, "key", &key) < 0) {
        return -1;
    }
    spec->key = key;
    return 0;
}

/* What only some requests have. */
static int spec_options(struct ts3_py_state *state, PyObject **given, struct ts3_request_spec *spec,
                        struct ts3_py_pending *pending)
{
    PyObject *into = given[TS3_PY_SUBMIT_INTO];
    if (into && into != Py_None) {
        spec->into = ts3_py_window_get(state, into, &pending->into);
        if (!spec->into) {
            return -1;
        }
    }
    PyObject *etag = given[TS3_PY_SUBMIT_EXPECT_ETAG];
    if (etag && etag != Py_None &&
        ts3_py_args_cstring(etag, "expect_etag", &spec->expect_etag) < 0) {
        return -1;
    }
    PyObject *strip = given[TS3_PY_SUBMIT_STRIP];
    if (strip && strip != Py_None) {
        struct ts3_str text;
        if (ts3_py_args_text(strip, "strip", &text) < 0) {
            return -1;
        }
        pending->strip = text.len ? Py_NewRef(strip) : NULL;
    }
    return 0;
}

/* Fills the spec's pairs; *kept as in ts3_py_args_pairs. */
static int spec_pairs(PyObject *value, const char *what, struct ts3_pair *pairs, size_t *count,
                      PyObject **kept)
{
    return value ? ts3_py_args_pairs(value, what, TS3_ENGINE_PAIRS, pairs, count, kept) : 0;
}

PyObject *ts3_py_submit(PyObject *object, PyObject *const *args, Py_ssize_t nargs,
                        PyObject *kwnames)
{
    struct ts3_py_engine *self = (struct ts3_py_engine *)object;
    struct ts3_py_state *state = self->state;
    PyObject *given[TS3_PY_SUBMIT_ARGS];
    if (!ts3_py_engine_get(self) ||
        ts3_py_args_sort("submit", args, nargs, kwnames, state->submit_names, TS3_PY_SUBMIT_ARGS, 2,
                         3u, given) < 0) {
        return NULL;
    }
    struct ts3_pair query[TS3_ENGINE_PAIRS];
    struct ts3_pair headers[TS3_ENGINE_PAIRS];
    PyObject *kept[3] = {NULL, NULL, NULL};
    PyObject *result = NULL;
    struct ts3_request_spec spec;
    struct ts3_py_pending *pending = ts3_py_engine_pending_new(self);
    if (!pending) {
        return NULL;
    }
    ts3_request_spec_init(&spec);
    spec.query = query;
    spec.headers = headers;
    spec.user = pending;
    /* Code of the caller's may run in the body's and the pairs' making: the window, which that code
     * could close, is borrowed after them. */
    if (spec_body(state, given[TS3_PY_SUBMIT_BODY], &spec, &pending->body) < 0 ||
        spec_choices(state, given, &spec) < 0 || spec_numbers(given, &spec) < 0 ||
        spec_key(given[TS3_PY_SUBMIT_KEY], &spec, &kept[0]) < 0 ||
        spec_pairs(given[TS3_PY_SUBMIT_QUERY], "query", query, &spec.query_count, &kept[1]) < 0 ||
        spec_pairs(given[TS3_PY_SUBMIT_HEADERS], "headers", headers, &spec.header_count,
                   &kept[2]) < 0 ||
        spec_options(state, given, &spec, pending) < 0) {
        goto cleanup;
    }
    uint64_t id = 0;
    enum ts3_err err = ts3_engine_submit(self->engine, &spec, &id);
    if (err != TS3_OK) {
        ts3_py_module_raise(state, err, "submit");
        goto cleanup;
    }
    result = PyLong_FromUnsignedLongLong(id);
    pending = NULL; /* from here on the final event ends it */
cleanup:
    if (pending) {
        ts3_py_engine_pending_free(self, pending);
    }
    Py_XDECREF(kept[0]);
    Py_XDECREF(kept[1]);
    Py_XDECREF(kept[2]);
    return result;
}
