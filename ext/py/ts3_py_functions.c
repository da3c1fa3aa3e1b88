/* SPDX-License-Identifier: GPL-2.0-or-later */
/* sign(), parse_list(), parse_error(): what the module offers without an engine. */
#include "ts3_py.h"

#include <string.h>

#include "core/ts3_alloc.h"
#include "xml/ts3_xml_error.h"

/* One text argument of sign() after the other, into the request. */
static int sign_texts(PyObject **args, struct ts3_sigv4_request *request)
{
    const struct {
        enum ts3_py_sign_arg arg;
        const char *what;
        struct ts3_str *text;
    } texts[] = {
        {TS3_PY_SIGN_METHOD, "method", &request->method},
        {TS3_PY_SIGN_HOST, "host", &request->host},
        {TS3_PY_SIGN_PATH, "path", &request->path},
        {TS3_PY_SIGN_PAYLOAD, "payload_sha256", &request->payload},
        {TS3_PY_SIGN_REGION, "region", &request->region},
        {TS3_PY_SIGN_KEY_ID, "access_key_id", &request->access_key_id},
        {TS3_PY_SIGN_SECRET, "secret", &request->secret},
        {TS3_PY_SIGN_SERVICE, "service", &request->service},
    };
    for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++) {
        PyObject *value = args[texts[i].arg];
        if (value && ts3_py_args_text(value, texts[i].what, texts[i].text) < 0) {
            return -1;
        }
    }
    request->time_s = PyLong_AsLongLong(args[TS3_PY_SIGN_TIME]);
    return request->time_s == -1 && PyErr_Occurred() ? -1 : 0;
}

/* Of text that can hold nothing else: what is signed is checked to be printable ASCII. */
static PyObject *ascii_from(struct ts3_str text)
{
    PyObject *made = PyUnicode_New((Py_ssize_t)text.len, 127);
    if (made) {
        memcpy(PyUnicode_1BYTE_DATA(made), text.data, text.len);
    }
    return made;
}

PyObject *ts3_py_functions_sign(PyObject *module, PyObject *const *args, Py_ssize_t nargs,
                                PyObject *kwnames)
{
    struct ts3_py_state *state = ts3_py_module_state(module);
    PyObject *given[TS3_PY_SIGN_ARGS];
    const uint32_t required = (1u << TS3_PY_SIGN_SERVICE) - 1;
    if (ts3_py_args_sort("sign", args, nargs, kwnames, state->sign_names, TS3_PY_SIGN_ARGS, 0,
                         required, given) < 0) {
        return NULL;
    }
    struct ts3_pair query[TS3_SIGV4_MAX_PAIRS];
    struct ts3_pair headers[TS3_SIGV4_MAX_PAIRS];
    struct ts3_sigv4_request request = {.query = query, .headers = headers};
    PyObject *kept_query = NULL;
    PyObject *kept_headers = NULL;
    PyObject *result = NULL;
    if (sign_texts(given, &request) < 0 ||
        ts3_py_args_pairs(given[TS3_PY_SIGN_QUERY], "query", TS3_SIGV4_MAX_PAIRS, query,
                          &request.query_count, &kept_query) < 0 ||
        ts3_py_args_last_pairs(given[TS3_PY_SIGN_HEADERS], "headers", TS3_SIGV4_MAX_PAIRS, headers,
                               &request.header_count, &kept_headers) < 0) {
        goto cleanup;
    }
    enum ts3_err err = ts3_sigv4_sign(state->signer, &request, &state->signed_request);
    if (err != TS3_OK) {
        ts3_py_module_raise(state, err, "sign");
        goto cleanup;
    }
    result = ascii_from(ts3_buf_str(&state->signed_request.authorization));
cleanup:
    Py_XDECREF(kept_query);
    Py_XDECREF(kept_headers);
    return result;
}

/* ValueError with the parser's own sentence; returns NULL. */
static PyObject *refuse(const struct ts3_py_state *state, enum ts3_err err,
                        const struct ts3_xml_fault *fault)
{
    if (err == TS3_ENOMEM || !fault->text[0]) {
        return ts3_py_module_raise(state, err, "the document");
    }
    PyErr_SetString(PyExc_ValueError, fault->text);
    return NULL;
}

static bool is_document(PyObject *document)
{
    if (PyBytes_Check(document)) {
        return true;
    }
    PyErr_Format(PyExc_TypeError, "a document must be bytes, not %.100s",
                 Py_TYPE(document)->tp_name);
    return false;
}

PyObject *ts3_py_functions_parse_list(PyObject *module, PyObject *document)
{
    struct ts3_py_state *state = ts3_py_module_state(module);
    if (!is_document(document)) {
        return NULL;
    }
    struct ts3_page page;
    struct ts3_xml_fault fault = {""};
    enum ts3_err err;
    /* The caller's reference keeps the bytes, and bytes do not change. */
    Py_BEGIN_ALLOW_THREADS
    err = ts3_xml_list_parse(ts3_alloc_libc(), PyBytes_AS_STRING(document),
                             (size_t)PyBytes_GET_SIZE(document), TS3_LIST_ANY, &page, &fault);
    Py_END_ALLOW_THREADS
    PyObject *result =
        err == TS3_OK ? ts3_py_convert_page(state, &page, TS3_STR("")) : refuse(state, err, &fault);
    ts3_xml_list_free(&page);
    return result;
}

PyObject *ts3_py_functions_parse_error(PyObject *module, PyObject *document)
{
    struct ts3_py_state *state = ts3_py_module_state(module);
    if (!is_document(document)) {
        return NULL;
    }
    struct ts3_xml_error error;
    struct ts3_xml_fault fault = {""};
    enum ts3_err err = ts3_xml_error_parse(ts3_alloc_libc(), PyBytes_AS_STRING(document),
                                           (size_t)PyBytes_GET_SIZE(document), &error, &fault);
    PyObject *result = NULL;
    if (err == TS3_OK) {
        PyObject *items[] = {ts3_py_convert_text(error.code),
                             ts3_py_convert_text(error.message),
                             ts3_py_convert_text(error.region),
                             ts3_py_convert_text(error.request_id),
                             ts3_py_convert_text(error.host_id),
                             error.server_time_s == TS3_TIME_NONE
                                 ? Py_NewRef(Py_None)
                                 : PyLong_FromLongLong(error.server_time_s)};
        result = ts3_py_convert_row(state->error_document_type, items, 6);
    } else {
        refuse(state, err, &fault);
    }
    ts3_xml_error_free(&error);
    return result;
}
