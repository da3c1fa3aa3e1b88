/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The type Engine, for the files that make it up.
 *
 * Owner: an Engine owns its ts3_engine, and for each request whose final event was not handed out a
 *   struct ts3_py_pending, which keeps the body's bytes alive and comes back as the event's user.
 * Thread: methods run with the GIL; close() and deallocation release it while the engine's threads
 *   are joined. The engine's threads never touch anything of Python's.
 * Fork: in a forked child every method raises EngineForked, and deallocation frees what is Python's
 *   and nothing else.
 * Garbage: an Engine may be part of a cycle through the owner of a body's buffer. Clearing it
 *   closes it first, since the engine reads those bytes until then.
 * Errors: NULL or -1 with a Python exception set. */
#ifndef TS3_PY_ENGINE_H
#define TS3_PY_ENGINE_H

#include "ts3_py.h"

/* A request between submit() and its final event. */
struct ts3_py_pending {
    struct ts3_py_pending *previous;
    struct ts3_py_pending *next;
    Py_buffer body;  /* body.obj is NULL where there is none */
    PyObject *into;  /* the bytes that the loop writes into, if the window is made of such; or NULL */
    PyObject *strip; /* a str whose UTF-8 is cut from the keys of listings; or NULL */
};

struct ts3_py_engine {
    PyObject_HEAD
    PyObject *module; /* keeps the state alive */
    struct ts3_py_state *state;
    struct ts3_engine *engine;
    struct ts3_py_engine *previous; /* in the state's list */
    struct ts3_py_engine *next;
    bool stopped; /* its threads are joined */
    struct ts3_py_pending *pending;
    struct ts3_event held; /* taken from the engine, but not yet made into an Event ... */
    bool holds;
    bool converting; /* ... or being made into one */
    PyObject *made; /* ... or made into one, but not yet handed out */
};

/* The engine behind self, or NULL with EngineClosed where garbage collection has taken it. */
struct ts3_engine *ts3_py_engine_get(struct ts3_py_engine *self);

/* Linked into self's list; NULL without memory. */
struct ts3_py_pending *ts3_py_engine_pending_new(struct ts3_py_engine *self);
void ts3_py_engine_pending_free(struct ts3_py_engine *self, struct ts3_py_pending *pending);

/* The method submit(). */
PyObject *ts3_py_submit(PyObject *object, PyObject *const *args, Py_ssize_t nargs,
                        PyObject *kwnames);

#endif
