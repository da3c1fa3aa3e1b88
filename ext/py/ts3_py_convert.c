/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Results of the C rooms as Python objects. A page has a thousand entries, so this is where
 * listings spend their time: rows are made without going through their class's constructor. */
#include "ts3_py.h"

#include <stdlib.h>
#include <string.h>

PyObject *ts3_py_convert_text(struct ts3_str text)
{
    return PyUnicode_DecodeUTF8(text.len ? text.data : "", (Py_ssize_t)text.len, "surrogateescape");
}

static PyObject *text_from(const char *text)
{
    return text ? ts3_py_convert_text(ts3_str_of(text)) : Py_NewRef(Py_None);
}

/* What people wrote for people may be in any encoding. */
static PyObject *message_from(const char *text)
{
    return PyUnicode_DecodeUTF8(text ? text : "", text ? (Py_ssize_t)strlen(text) : 0, "replace");
}

static PyObject *time_from(int64_t time_s)
{
    return time_s == TS3_TIME_NONE ? Py_NewRef(Py_None) : PyLong_FromLongLong(time_s);
}

PyObject *ts3_py_convert_row(PyTypeObject *type, PyObject **items, Py_ssize_t count)
{
    bool whole = true;
    for (Py_ssize_t i = 0; i < count; i++) {
        whole = whole && items[i];
    }
    PyObject *row = whole ? type->tp_alloc(type, count) : NULL;
    if (!row) {
        for (Py_ssize_t i = 0; i < count; i++) {
            Py_XDECREF(items[i]);
        }
        return NULL;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyTuple_SET_ITEM(row, i, items[i]);
    }
#if PY_VERSION_HEX >= 0x030E0000
    ((PyTupleObject *)row)->ob_hash = -1; /* a tuple caches its hash; -1 stands for "not yet" */
#endif
    return row;
}

/* ---- listings ---- */

static bool cut_prefix(struct ts3_str *key, struct ts3_str strip)
{
    if (key->len < strip.len || (strip.len && memcmp(key->data, strip.data, strip.len) != 0)) {
        return false;
    }
    key->data += strip.len;
    key->len -= strip.len;
    return true;
}

static int entry_order(const void *a, const void *b)
{
    return ts3_str_cmp(((const struct ts3_entry *)a)->key, ((const struct ts3_entry *)b)->key);
}

/* In place. Nearly every service sorts, so looking is nearly always all there is to do. */
static void sort_entries(struct ts3_page *page)
{
    struct ts3_entry *entries = page->entries;
    size_t i = 1;
    while (i < page->entry_count && ts3_str_cmp(entries[i - 1].key, entries[i].key) < 0) {
        i++;
    }
    if (i >= page->entry_count) {
        return;
    }
    qsort(entries, page->entry_count, sizeof(*entries), entry_order);
    size_t kept = 1;
    for (i = 1; i < page->entry_count; i++) {
        if (!ts3_str_eq(entries[kept - 1].key, entries[i].key)) {
            entries[kept++] = entries[i];
        }
    }
    page->entry_count = kept;
}

struct storage_class {
    struct ts3_str text;
    PyObject *object;
};

/* Nearly always that of the entry before. */
static PyObject *storage_class_from(struct storage_class *last, struct ts3_str text)
{
    if (!last->object || !ts3_str_eq(last->text, text)) {
        Py_XDECREF(last->object);
        last->object = ts3_py_convert_text(text);
        last->text = text;
    }
    return Py_XNewRef(last->object);
}

static PyObject *entry_from(struct ts3_py_state *state, const struct ts3_entry *entry,
                            struct ts3_str key, struct storage_class *last)
{
    PyObject *items[] = {ts3_py_convert_text(key), PyLong_FromLongLong(entry->size_bytes),
                         ts3_py_convert_text(entry->etag), PyLong_FromLongLong(entry->modified_s),
                         storage_class_from(last, entry->storage_class)};
    PyObject *row = ts3_py_convert_row(state->entry_type, items, 5);
    if (row) {
        /* Holds only str and int, so it is in no cycle; a thousand of them need no visits. */
        PyObject_GC_UnTrack(row);
    }
    return row;
}

static PyObject *entries_from(struct ts3_py_state *state, const struct ts3_page *page,
                              struct ts3_str strip)
{
    PyObject *list = PyList_New((Py_ssize_t)page->entry_count);
    if (!list) {
        return NULL;
    }
    struct storage_class last = {{NULL, 0}, NULL};
    Py_ssize_t made = 0;
    for (size_t i = 0; i < page->entry_count; i++) {
        struct ts3_str key = page->entries[i].key;
        if (!cut_prefix(&key, strip)) {
            continue; /* not below the prefix that was asked for: nothing of ours */
        }
        PyObject *row = entry_from(state, &page->entries[i], key, &last);
        if (!row) {
            Py_CLEAR(list);
            break;
        }
        PyList_SET_ITEM(list, made++, row);
    }
    Py_XDECREF(last.object);
    if (list && made < (Py_ssize_t)page->entry_count &&
        PyList_SetSlice(list, made, (Py_ssize_t)page->entry_count, NULL) < 0) {
        Py_CLEAR(list);
    }
    return list;
}

static PyObject *prefixes_from(const struct ts3_page *page, struct ts3_str strip)
{
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list && i < page->prefix_count; i++) {
        struct ts3_str prefix = page->prefixes[i];
        if (!cut_prefix(&prefix, strip)) {
            continue;
        }
        PyObject *text = ts3_py_convert_text(prefix);
        if (!text || PyList_Append(list, text) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(text);
    }
    return list;
}

PyObject *ts3_py_convert_page(struct ts3_py_state *state, struct ts3_page *page,
                              struct ts3_str strip)
{
    sort_entries(page);
    PyObject *items[] = {entries_from(state, page, strip), prefixes_from(page, strip),
                         page->truncated ? ts3_py_convert_text(page->next_token)
                                         : Py_NewRef(Py_None),
                         PyBool_FromLong(page->v1)};
    return ts3_py_convert_row(state->page_type, items, 4);
}

/* ---- the other documents ---- */

static PyObject *deleted_from(const struct ts3_xml_deleted *deleted, struct ts3_str strip)
{
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list && i < deleted->item_count; i++) {
        struct ts3_str key = deleted->items[i].key;
        (void)cut_prefix(&key, strip); /* an error without a key is told all the same */
        PyObject *pair = Py_BuildValue("(NN)", ts3_py_convert_text(key),
                                       ts3_py_convert_text(deleted->items[i].code));
        if (!pair || PyList_Append(list, pair) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(pair);
    }
    return list;
}

static PyObject *marker_from(bool truncated, struct ts3_str marker)
{
    return truncated ? ts3_py_convert_text(marker) : Py_NewRef(Py_None);
}

static PyObject *uploads_from(struct ts3_py_state *state, const struct ts3_xml_uploads *uploads,
                              struct ts3_str strip)
{
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list && i < uploads->upload_count; i++) {
        const struct ts3_upload *upload = &uploads->uploads[i];
        struct ts3_str key = upload->key;
        if (!cut_prefix(&key, strip)) {
            continue;
        }
        PyObject *items[] = {ts3_py_convert_text(key), ts3_py_convert_text(upload->upload_id),
                             time_from(upload->initiated_s)};
        PyObject *row = ts3_py_convert_row(state->upload_type, items, 3);
        if (!row || PyList_Append(list, row) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(row);
    }
    PyObject *items[] = {list, marker_from(uploads->truncated, uploads->next_key_marker),
                         marker_from(uploads->truncated, uploads->next_upload_id_marker)};
    return ts3_py_convert_row(state->uploads_type, items, 3);
}

/* ---- events ---- */

static PyObject *value_from(struct ts3_py_state *state, struct ts3_event *event,
                            struct ts3_str strip)
{
    if (event->failed) {
        return Py_NewRef(Py_None);
    }
    switch (event->parse) {
    case TS3_PARSE_BYTES:
        return PyBytes_FromStringAndSize((const char *)event->value.bytes.data,
                                         (Py_ssize_t)event->value.bytes.size);
    case TS3_PARSE_LIST:
        return ts3_py_convert_page(state, &event->value.page, strip);
    case TS3_PARSE_DELETED:
        return deleted_from(&event->value.deleted, strip);
    case TS3_PARSE_CREATE:
    case TS3_PARSE_COMPLETE:
    case TS3_PARSE_COPY:
        return text_from(event->value.text);
    case TS3_PARSE_UPLOADS:
        return uploads_from(state, &event->value.uploads, strip);
    case TS3_PARSE_NONE:
        break;
    }
    return Py_NewRef(Py_None);
}

static PyObject *failure_from(struct ts3_py_state *state, const struct ts3_event *event)
{
    if (!event->failed) {
        return Py_NewRef(Py_None);
    }
    const struct ts3_failure *failure = &event->failure;
    PyObject *items[] = {Py_NewRef(state->kinds[failure->kind]),
                         Py_NewRef(state->outcomes[failure->outcome]),
                         PyLong_FromLong(failure->status),
                         message_from(failure->code),
                         message_from(failure->message),
                         time_from(failure->server_time_s),
                         text_from(failure->region)};
    return ts3_py_convert_row(state->failure_type, items, 7);
}

static PyObject *id_text_from(struct ts3_py_state *state, const char *text)
{
    return text && *text ? message_from(text) : Py_NewRef(state->empty);
}

PyObject *ts3_py_convert_event(struct ts3_py_state *state, struct ts3_event *event,
                               struct ts3_str strip)
{
    struct ts3_event progress = {
        .id = event->id,
        .size = TS3_SIZE_NONE,
        .modified_s = TS3_TIME_NONE,
        .server_time_s = TS3_TIME_NONE,
    };
    if (!event->final) {
        event = &progress; /* of which the engine has set nothing else */
    }
    PyObject *items[] = {
        PyLong_FromUnsignedLongLong(event->id),
        PyBool_FromLong(event->final),
        failure_from(state, event),
        PyLong_FromLong(event->status),
        text_from(event->etag),
        event->size == TS3_SIZE_NONE ? Py_NewRef(Py_None)
                                     : PyLong_FromUnsignedLongLong(event->size),
        time_from(event->modified_s),
        time_from(event->server_time_s),
        PyLong_FromLongLong(event->skew_s),
        value_from(state, event, strip),
        id_text_from(state, event->request_id),
        id_text_from(state, event->host_id),
        PyLong_FromUnsignedLong(event->attempts),
        PyLong_FromLongLong(event->queued_us),
        PyLong_FromLongLong(event->first_byte_us),
        PyLong_FromLongLong(event->total_us),
        PyLong_FromUnsignedLongLong(event->bytes_up),
        PyLong_FromUnsignedLongLong(event->bytes_down),
    };
    return ts3_py_convert_row(state->event_type, items,
                              (Py_ssize_t)(sizeof(items) / sizeof(*items)));
}
