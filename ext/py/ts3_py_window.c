/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The type Window: a reference to memory that the engine fills. It keeps no Python object alive but
 * bytes, so it needs no part in garbage collection. Its memory stays charged to the budget until it
 * is closed and no request fills it any more.
 *
 * Where all of it is wanted at once its memory is that of a bytes object, which nobody else sees
 * before the last byte is ready, and whose bytes do not change from then on. The loop's thread writes
 * there without the GIL; the Window and whatever fills it (struct ts3_py_pending) keep it alive. */
#include "ts3_py.h"

struct ts3_py_window {
    PyObject_HEAD
    struct ts3_window *window; /* one reference; NULL once closed */
    PyObject *bytes;           /* what its memory is; NULL where that is the engine's, and once closed */
    size_t size_bytes;
};

static const char CLOSED[] = "the window was closed";

PyObject *ts3_py_window_make(struct ts3_py_state *state, struct ts3_window *window, PyObject *bytes)
{
    struct ts3_py_window *self = PyObject_New(struct ts3_py_window, state->window_type);
    if (!self) {
        ts3_window_unref(window);
        Py_XDECREF(bytes);
        return NULL;
    }
    self->window = window;
    self->bytes = bytes;
    self->size_bytes = ts3_window_size(window);
    return (PyObject *)self;
}

struct ts3_window *ts3_py_window_get(struct ts3_py_state *state, PyObject *object, PyObject **bytes)
{
    if (!Py_IS_TYPE(object, state->window_type)) {
        PyErr_Format(PyExc_TypeError, "into must be a Window, not %.100s",
                     Py_TYPE(object)->tp_name);
        return NULL;
    }
    struct ts3_py_window *self = (struct ts3_py_window *)object;
    if (!self->window) {
        PyErr_SetString(PyExc_ValueError, CLOSED);
        return NULL;
    }
    *bytes = Py_XNewRef(self->bytes);
    return self->window;
}

/* Gives up the window first: the engine may read of its memory until then. */
static void let_go(struct ts3_py_window *self)
{
    struct ts3_window *window = self->window;
    self->window = NULL;
    ts3_window_unref(window);
    Py_CLEAR(self->bytes);
}

static void window_dealloc(PyObject *object)
{
    struct ts3_py_window *self = (struct ts3_py_window *)object;
    PyTypeObject *type = Py_TYPE(self);
    let_go(self);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyObject *window_close(PyObject *object, PyObject *Py_UNUSED(none))
{
    let_go((struct ts3_py_window *)object);
    Py_RETURN_NONE;
}

static PyObject *window_read(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    struct ts3_py_window *self = (struct ts3_py_window *)object;
    uint64_t offset = 0;
    uint64_t length = 0;
    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "read() takes an offset and a length");
        return NULL;
    }
    if (ts3_py_args_number(args[0], "offset", PY_SSIZE_T_MAX, &offset) < 0 ||
        ts3_py_args_number(args[1], "length", PY_SSIZE_T_MAX, &length) < 0) {
        return NULL;
    }
    if (!self->window) {
        PyErr_SetString(PyExc_ValueError, CLOSED);
        return NULL;
    }
    size_t ready = ts3_window_ready(self->window);
    if (offset > ready || length > ready - offset) {
        PyErr_Format(PyExc_ValueError, "bytes %llu to %llu are not all ready: the first %zu are",
                     (unsigned long long)offset, (unsigned long long)(offset + length), ready);
        return NULL;
    }
    const unsigned char *data = ts3_window_data(self->window);
    if (!data) {
        return ts3_py_module_raise(PyType_GetModuleState(Py_TYPE(self)), TS3_EFORKED, "read");
    }
    if (self->bytes && length == self->size_bytes) {
        return Py_NewRef(self->bytes);
    }
    return PyBytes_FromStringAndSize((const char *)data + offset, (Py_ssize_t)length);
}

static PyObject *window_arm(PyObject *object, PyObject *upto)
{
    struct ts3_py_window *self = (struct ts3_py_window *)object;
    uint64_t upto_bytes = 0;
    bool ready = false;
    if (ts3_py_args_number(upto, "upto", self->size_bytes, &upto_bytes) < 0) {
        return NULL;
    }
    if (!self->window) {
        PyErr_SetString(PyExc_ValueError, CLOSED);
        return NULL;
    }
    enum ts3_err err = ts3_window_arm(self->window, (size_t)upto_bytes, &ready);
    if (err != TS3_OK) {
        return ts3_py_module_raise(PyType_GetModuleState(Py_TYPE(self)), err, "arm");
    }
    return PyBool_FromLong(ready);
}

static PyObject *window_get_size(PyObject *object, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(((struct ts3_py_window *)object)->size_bytes);
}

static PyObject *window_get_ready(PyObject *object, void *Py_UNUSED(closure))
{
    struct ts3_py_window *self = (struct ts3_py_window *)object;
    return PyLong_FromSize_t(self->window ? ts3_window_ready(self->window) : 0);
}

static PyObject *window_repr(PyObject *object)
{
    struct ts3_py_window *self = (struct ts3_py_window *)object;
    if (!self->window) {
        return PyUnicode_FromFormat("<Window of %zu bytes, closed>", self->size_bytes);
    }
    return PyUnicode_FromFormat("<Window of %zu bytes, %zu ready>", self->size_bytes,
                                ts3_window_ready(self->window));
}

/* A cast through void (*)(void) is the one that compilers accept for another signature. */
#define AS_METHOD(function) ((PyCFunction)(void (*)(void))(function))

static PyMethodDef window_methods[] = {
    {"arm", window_arm, METH_O,
     "arm($self, upto, /)\n--\n\nTrue: so many bytes are ready; else an event tells when."},
    {"read", AS_METHOD(window_read), METH_FASTCALL,
     "read($self, offset, length, /)\n--\n\nReady bytes; ValueError beyond them."},
    {"close", window_close, METH_NOARGS, "close($self, /)\n--\n\nGive the memory back; idempotent."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef window_getset[] = {
    {"size", window_get_size, NULL, "Bytes in all.", NULL},
    {"ready", window_get_ready, NULL, "Bytes valid from 0 on; only grows; 0 once closed.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot window_slots[] = {
    {Py_tp_doc, "Memory for a range of an object, made by Engine.window()."},
    {Py_tp_dealloc, window_dealloc},
    {Py_tp_repr, window_repr},
    {Py_tp_methods, window_methods},
    {Py_tp_getset, window_getset},
    {0, NULL},
};

#if PY_VERSION_HEX >= 0x030A0000
#define WINDOW_FLAGS \
    (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE)
#else
#define WINDOW_FLAGS Py_TPFLAGS_DEFAULT /* the module takes tp_new away */
#endif

PyType_Spec ts3_py_window_spec = {
    .name = "tahoe_s3._native.Window",
    .basicsize = sizeof(struct ts3_py_window),
    .flags = WINDOW_FLAGS,
    .slots = window_slots,
};
