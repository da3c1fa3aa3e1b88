/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Arguments from Python. Keyword names are compared by identity first: they are interned, so one
 * look is enough, and a call with ten keywords costs less than PyArg_ParseTupleAndKeywords takes
 * for its format string. */
#include "ts3_py.h"

#include <string.h>

static int place_of(PyObject *name, PyObject *const *names, size_t count, size_t *place)
{
    for (size_t i = 0; i < count; i++) {
        if (names[i] == name) {
            *place = i;
            return 1;
        }
    }
    for (size_t i = 0; i < count; i++) {
        if (PyUnicode_Compare(names[i], name) == 0) {
            *place = i;
            return 1;
        }
        if (PyErr_Occurred()) {
            return -1;
        }
    }
    return 0;
}

int ts3_py_args_sort(const char *function, PyObject *const *args, Py_ssize_t nargs,
                     PyObject *kwnames, PyObject *const *names, size_t count, size_t positional,
                     uint32_t required, PyObject **out)
{
    memset(out, 0, count * sizeof(*out));
    if ((size_t)nargs > positional) {
        PyErr_Format(PyExc_TypeError, "%s() takes %zu positional arguments but %zd were given",
                     function, positional, nargs);
        return -1;
    }
    for (Py_ssize_t i = 0; i < nargs; i++) {
        out[i] = args[i];
    }
    Py_ssize_t named = kwnames ? PyTuple_GET_SIZE(kwnames) : 0;
    size_t place = (size_t)nargs;
    for (Py_ssize_t i = 0; i < named; i++, place++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, i);
        /* Most callers name them in the order in which they are declared. */
        bool next = place < count && names[place] == name;
        int found = next ? 1 : place_of(name, names, count, &place);
        if (found < 0) {
            return -1;
        }
        if (!found || out[place]) {
            PyErr_Format(PyExc_TypeError,
                         found ? "%s() got multiple values for argument '%U'"
                               : "%s() got an unexpected keyword argument '%U'",
                         function, name);
            return -1;
        }
        out[place] = args[nargs + i];
    }
    for (size_t i = 0; i < count; i++) {
        if (!out[i] && (required >> i & 1u)) {
            PyErr_Format(PyExc_TypeError, "%s() misses the argument '%U'", function, names[i]);
            return -1;
        }
    }
    return 0;
}

int ts3_py_args_choice(PyObject *value, PyObject *const *choices, size_t count, const char *what,
                       size_t *index)
{
    if (!PyUnicode_Check(value)) {
        PyErr_Format(PyExc_TypeError, "%s must be str, not %.100s", what, Py_TYPE(value)->tp_name);
        return -1;
    }
    int found = place_of(value, choices, count, index);
    if (found == 0) {
        PyErr_Format(PyExc_ValueError, "%s: %R is not known", what, value);
    }
    return found == 1 ? 0 : -1;
}

int ts3_py_args_text(PyObject *value, const char *what, struct ts3_str *text)
{
    Py_ssize_t size = 0;
    if (PyUnicode_Check(value) && PyUnicode_IS_COMPACT_ASCII(value)) {
        text->data = (const char *)PyUnicode_1BYTE_DATA(value); /* nearly all; no call then */
        size = PyUnicode_GET_LENGTH(value);
    } else if (PyUnicode_Check(value)) {
        text->data = PyUnicode_AsUTF8AndSize(value, &size);
        if (!text->data) {
            return -1;
        }
    } else if (PyBytes_Check(value)) {
        text->data = PyBytes_AS_STRING(value);
        size = PyBytes_GET_SIZE(value);
    } else {
        PyErr_Format(PyExc_TypeError, "%s must be str or bytes, not %.100s", what,
                     Py_TYPE(value)->tp_name);
        return -1;
    }
    text->len = (size_t)size;
    return 0;
}

int ts3_py_args_cstring(PyObject *value, const char *what, const char **text)
{
    struct ts3_str str;
    if (ts3_py_args_text(value, what, &str) < 0) {
        return -1;
    }
    if (strlen(str.data) != str.len) {
        PyErr_Format(PyExc_ValueError, "%s must not hold a NUL", what);
        return -1;
    }
    *text = str.data;
    return 0;
}

int ts3_py_args_number(PyObject *value, const char *what, uint64_t max, uint64_t *number)
{
    if (!PyLong_Check(value)) {
        PyErr_Format(PyExc_TypeError, "%s must be int, not %.100s", what, Py_TYPE(value)->tp_name);
        return -1;
    }
    unsigned long long got = PyLong_AsUnsignedLongLong(value);
    bool out_of_range = got > max;
    if (got == (unsigned long long)-1 && PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_OverflowError)) {
            return -1;
        }
        PyErr_Clear();
        out_of_range = true;
    }
    if (out_of_range) {
        PyErr_Format(PyExc_ValueError, "%s must be between 0 and %llu", what,
                     (unsigned long long)max);
        return -1;
    }
    *number = got;
    return 0;
}

static int pair_from(PyObject *item, const char *what, struct ts3_pair *pair)
{
    if (!PyTuple_Check(item) || PyTuple_GET_SIZE(item) != 2) {
        PyErr_Format(PyExc_TypeError, "%s must hold tuples (name, value)", what);
        return -1;
    }
    if (ts3_py_args_text(PyTuple_GET_ITEM(item, 0), what, &pair->name) < 0) {
        return -1;
    }
    return ts3_py_args_text(PyTuple_GET_ITEM(item, 1), what, &pair->value);
}

static int read_pairs(PyObject *const *items, Py_ssize_t count, const char *what, size_t max,
                      struct ts3_pair *pairs)
{
    if ((size_t)count > max) {
        PyErr_Format(PyExc_ValueError, "%s: at most %zu pairs", what, max);
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        if (pair_from(items[i], what, &pairs[i]) < 0) {
            return -1;
        }
    }
    return 0;
}

int ts3_py_args_pairs(PyObject *value, const char *what, size_t max, struct ts3_pair *pairs,
                      size_t *count, PyObject **kept)
{
    /* A tuple of our own: nobody changes it while the texts inside are borrowed. */
    *kept = PySequence_Tuple(value);
    if (!*kept) {
        return -1;
    }
    *count = (size_t)PyTuple_GET_SIZE(*kept);
    return read_pairs(PySequence_Fast_ITEMS(*kept), PyTuple_GET_SIZE(*kept), what, max, pairs);
}

int ts3_py_args_last_pairs(PyObject *value, const char *what, size_t max, struct ts3_pair *pairs,
                           size_t *count, PyObject **kept)
{
    if (!PyList_CheckExact(value)) {
        return ts3_py_args_pairs(value, what, max, pairs, count, kept);
    }
    *count = (size_t)PyList_GET_SIZE(value);
    return read_pairs(PySequence_Fast_ITEMS(value), PyList_GET_SIZE(value), what, max, pairs);
}
