/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the files of the module tahoe_s3._native share. The only room with Python.h.
 *
 * Owner: struct ts3_py_state belongs to the module object; types, exceptions and constant strings
 *   live in it, and nothing is global. An Engine keeps its module alive, so that state outlives
 *   every engine.
 * Thread: everything here runs with the GIL held, but for parsing a document and for joining the
 *   engine's threads, during which it is released. The engine's own threads never come here.
 * Errors: NULL or -1 with a Python exception set. */
#ifndef TS3_PY_H
#define TS3_PY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#if PY_VERSION_HEX < 0x030A0000
static inline PyObject *Py_NewRef(PyObject *object)
{
    Py_INCREF(object);
    return object;
}
static inline PyObject *Py_XNewRef(PyObject *object)
{
    Py_XINCREF(object);
    return object;
}
static inline int PyModule_AddObjectRef(PyObject *module, const char *name, PyObject *value)
{
    Py_INCREF(value);
    int result = PyModule_AddObject(module, name, value);
    if (result < 0) {
        Py_DECREF(value);
    }
    return result;
}
#endif

#include "core/ts3_err.h"
#include "core/ts3_sigv4.h"
#include "core/ts3_str.h"
#include "net/ts3_engine.h"
#include "xml/ts3_xml_list.h"

enum {
    TS3_PY_KINDS = TS3_KIND_LOCAL + 1,
    TS3_PY_OUTCOMES = TS3_OUTCOME_UNKNOWN + 1,
    TS3_PY_PARSES = TS3_PARSE_UPLOADS + 1,
    TS3_PY_MAX_ARGS = 20
};

/* Names of keyword arguments, in the order of the functions that take them. */
enum ts3_py_sign_arg {
    TS3_PY_SIGN_METHOD,
    TS3_PY_SIGN_HOST,
    TS3_PY_SIGN_PATH,
    TS3_PY_SIGN_QUERY,
    TS3_PY_SIGN_HEADERS,
    TS3_PY_SIGN_PAYLOAD,
    TS3_PY_SIGN_TIME,
    TS3_PY_SIGN_REGION,
    TS3_PY_SIGN_KEY_ID,
    TS3_PY_SIGN_SECRET,
    TS3_PY_SIGN_SERVICE,
    TS3_PY_SIGN_ARGS
};

enum ts3_py_submit_arg {
    TS3_PY_SUBMIT_METHOD,
    TS3_PY_SUBMIT_KEY,
    TS3_PY_SUBMIT_QUERY,
    TS3_PY_SUBMIT_HEADERS,
    TS3_PY_SUBMIT_BODY,
    TS3_PY_SUBMIT_INTO,
    TS3_PY_SUBMIT_OFFSET,
    TS3_PY_SUBMIT_EXPECT_ETAG,
    TS3_PY_SUBMIT_PARSE,
    TS3_PY_SUBMIT_MAX_ANSWER,
    TS3_PY_SUBMIT_STRIP,
    TS3_PY_SUBMIT_PRIORITY,
    TS3_PY_SUBMIT_ATTEMPTS,
    TS3_PY_SUBMIT_FIRST_BYTE,
    TS3_PY_SUBMIT_STALL,
    TS3_PY_SUBMIT_DEADLINE,
    TS3_PY_SUBMIT_ARGS
};

struct ts3_py_engine;

struct ts3_py_state {
    PyTypeObject *engine_type;
    PyTypeObject *window_type;
    /* named tuples */
    PyTypeObject *entry_type;
    PyTypeObject *page_type;
    PyTypeObject *upload_type;
    PyTypeObject *uploads_type;
    PyTypeObject *failure_type;
    PyTypeObject *event_type;
    PyTypeObject *file_region_type;
    PyTypeObject *error_document_type;
    /* exceptions */
    PyObject *engine_error;
    PyObject *engine_forked;
    PyObject *engine_closed;
    PyObject *queue_full;
    PyObject *budget_exhausted;
    /* interned strings */
    PyObject *empty;
    PyObject *kinds[TS3_PY_KINDS];
    PyObject *outcomes[TS3_PY_OUTCOMES];
    PyObject *methods[TS3_METHOD_COUNT];
    PyObject *parses[TS3_PY_PARSES];
    PyObject *sign_names[TS3_PY_SIGN_ARGS];
    PyObject *submit_names[TS3_PY_SUBMIT_ARGS];
    /* sign()'s own signer; it keeps the key derived last */
    struct ts3_digest *digest;
    struct ts3_sigv4 *signer;
    struct ts3_sigv4_out signed_request;
    /* all engines alive, so that none outlives the interpreter */
    struct ts3_py_engine *engines;
    atomic_int releasing; /* engines that are being freed, with the GIL released ... */
    pid_t releasing_pid;  /* ... in this process: a forked child must not wait for its parent's */
    bool exiting;
};

/* ---- ts3_py_args.c: arguments ---- */

/* Sorts the arguments of a METH_FASTCALL | METH_KEYWORDS function into out (count places, borrowed,
 * NULL where not given). The first `positional` may come by position; bit i of `required` says that
 * the i-th must be there. */
int ts3_py_args_sort(const char *function, PyObject *const *args, Py_ssize_t nargs,
                     PyObject *kwnames, PyObject *const *names, size_t count, size_t positional,
                     uint32_t required, PyObject **out);
/* Which of the choices a str is; ValueError otherwise. */
int ts3_py_args_choice(PyObject *value, PyObject *const *choices, size_t count, const char *what,
                       size_t *index);
/* A str as UTF-8, or bytes as they are; borrowed from the object. */
int ts3_py_args_text(PyObject *value, const char *what, struct ts3_str *text);
/* The same without a NUL inside, for what C takes as a string. */
int ts3_py_args_cstring(PyObject *value, const char *what, const char **text);
int ts3_py_args_number(PyObject *value, const char *what, uint64_t max, uint64_t *number);
/* An iterable of (str, str); *kept must stay alive as long as pairs is used and be released by the
 * caller. */
int ts3_py_args_pairs(PyObject *value, const char *what, size_t max, struct ts3_pair *pairs,
                      size_t *count, PyObject **kept);
/* The same for a caller that uses the pairs before any other code can run: a list needs no copy. */
int ts3_py_args_last_pairs(PyObject *value, const char *what, size_t max, struct ts3_pair *pairs,
                           size_t *count, PyObject **kept);

/* ---- ts3_py_convert.c: results ---- */

/* UTF-8 to str; other bytes become surrogates, as in file names, so that any key can be named. */
PyObject *ts3_py_convert_text(struct ts3_str text);
/* Sorts page's entries by key, drops repeated ones, cuts `strip` (UTF-8) from the keys. */
PyObject *ts3_py_convert_page(struct ts3_py_state *state, struct ts3_page *page,
                              struct ts3_str strip);
/* The Event of an event of the engine. */
PyObject *ts3_py_convert_event(struct ts3_py_state *state, struct ts3_event *event,
                               struct ts3_str strip);
/* A named tuple of `type` from `count` new references, which it steals; NULL when one is NULL. */
PyObject *ts3_py_convert_row(PyTypeObject *type, PyObject **items, Py_ssize_t count);

/* ---- ts3_py_functions.c: functions without an engine ---- */

PyObject *ts3_py_functions_sign(PyObject *module, PyObject *const *args, Py_ssize_t nargs,
                                PyObject *kwnames);
PyObject *ts3_py_functions_parse_list(PyObject *module, PyObject *document);
PyObject *ts3_py_functions_parse_error(PyObject *module, PyObject *document);

/* ---- ts3_py_engine.c, ts3_py_window.c ---- */

extern PyType_Spec ts3_py_engine_spec;
extern PyType_Spec ts3_py_window_spec;
/* Joins the threads of every engine of this module; called before the interpreter ends. */
void ts3_py_engine_stop_all(struct ts3_py_state *state);
/* Takes over the window, and the bytes (or NULL) that are its memory, also when it fails. */
PyObject *ts3_py_window_make(struct ts3_py_state *state, struct ts3_window *window,
                             PyObject *bytes);
/* The window inside a Window; ValueError when it was closed, TypeError for another type. *bytes: a new
 * reference to what its memory is, or NULL; to be held as long as a request may fill it. */
struct ts3_window *ts3_py_window_get(struct ts3_py_state *state, PyObject *object,
                                     PyObject **bytes);

/* ---- ts3_py_module.c ---- */

/* The state of the module that a type of it belongs to. */
struct ts3_py_state *ts3_py_module_state(PyObject *module);
/* Too late for threads: the atexit functions have run. */
bool ts3_py_module_finalizing(void);
/* Sets the exception for an error of the C rooms, `what` naming the call; returns NULL. */
PyObject *ts3_py_module_raise(const struct ts3_py_state *state, enum ts3_err err, const char *what);

#endif
