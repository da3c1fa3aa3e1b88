/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The body of a request: nothing, memory of the caller, or a region of a file.
 *
 * A file region of up to TS3_ENGINE_BODY_BYTES is read once, by a worker that hashes it on the
 * way, and sent from memory in every attempt.  A longer one is hashed in a first pass and then
 * read again in two chunks that workers fill ahead of libcurl; when the next chunk is not there
 * yet, reading says pause.
 *
 * Owner: the request.  Thread: the loop's, except for what its job works on between
 *   ts3_pool_submit and the job's return, or its withdrawal: then data, digests, hash, error and
 *   the chunk being filled belong to the worker.  The caller's memory is only read.
 * Errors: error and error_number after a job; TS3_EIO with error_number 0 means the file ended
 *   before the region did.
 * Limits: TS3_BODY_CHUNK_BYTES a chunk, two chunks. */
#ifndef TS3_BODY_H
#define TS3_BODY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/ts3_sha256_long.h"
#include "net/ts3_engine.h"
#include "net/ts3_shared.h"
#include "net/ts3_worker.h"

#define TS3_BODY_CHUNK_BYTES ((size_t)512 << 10)
/* One step of a worker.  Three of them, hashed side by side, leave half of a level 2 cache of a MiB to a
 * loop that has the same core next (seven signed uploads of 8 MiB each within TLS: 2% to 4% quicker than
 * with 256 KiB, in the clear as quick; with 64 KiB as slow again, for each step ends by yielding). */
#define TS3_BODY_SLICE_BYTES ((size_t)160 << 10)
/* memory up to this is hashed by the thread that submits */
#define TS3_BODY_INLINE_BYTES ((size_t)16 << 10)

enum ts3_body_kind { TS3_BODY_NONE, TS3_BODY_MEMORY, TS3_BODY_LOADED, TS3_BODY_STREAM };
enum ts3_body_task { TS3_TASK_PREPARE, TS3_TASK_CHUNK };

struct ts3_chunk {
    unsigned char *data;
    uint64_t index; /* of the chunk of the region that is, or will be, here */
    bool valid;     /* filled */
};

struct ts3_body {
    struct ts3_job job;
    enum ts3_body_task task;
    enum ts3_body_kind kind;
    struct ts3_shared *shared;
    const struct ts3_digest *digest;
    const unsigned char *data; /* MEMORY: the caller's; LOADED: the block's */
    struct ts3_block block;    /* LOADED: the region; STREAM: both chunks */
    uint64_t size_bytes;
    int fd; /* -1 or our own duplicate */
    uint64_t offset;
    bool want_sha256;
    bool want_md5;
    char sha256[TS3_SHA256_HEX_BYTES];
    char md5[TS3_MD5_BASE64_BYTES];
    struct ts3_sha256_long hash; /* while it is being prepared ... */
    uint64_t at;                 /* ... up to here; while a chunk is filled, so much of it is */
    bool hashing;                /* hash was begun */
    bool always_waits;           /* its file system does not tell whether reading would wait */
    enum ts3_err error;
    int error_number;
    bool prepared; /* digests are there, bytes can be read */
    bool working;  /* the job is with the workers */
    uint64_t position;
    struct ts3_chunk chunk[2];
    unsigned filling; /* which chunk the job works on */
};

/* fd >= 0 is taken over: ts3_body_free closes it. */
void ts3_body_init(struct ts3_body *body, struct ts3_shared *shared,
                   const struct ts3_digest *digest, const void *data, int fd, uint64_t offset,
                   uint64_t size_bytes);
/* The job must not be working. */
void ts3_body_free(struct ts3_body *body);
/* What preparing will allocate, to be charged to the budget before. */
size_t ts3_body_cost(const struct ts3_body *body);

/* Before the body is the loop's, on the thread that submits: hashes a small one from memory, and
 * none at all, so that the loop, which all transfers share, need not. */
void ts3_body_prepare_small(struct ts3_body *body);
/* Makes the body ready to be sent: at once (prepared is true then), or by a job (working is true
 * then). */
enum ts3_err ts3_body_prepare(struct ts3_body *body, struct ts3_pool *pool, bool urgent);
/* The job has come back: prepared is set, or a chunk became valid, or error is set. */
void ts3_body_done(struct ts3_body *body);

/* Copies the next bytes, up to size; 0 with *pause true when they are not there yet (a job is on
 * its way), 0 with *pause false at the end, or when error is set. */
size_t ts3_body_read(struct ts3_body *body, void *out, size_t size, struct ts3_pool *pool,
                     bool *pause);
/* Where the next read begins.  A position beyond the end is TS3_EINVAL. */
enum ts3_err ts3_body_seek(struct ts3_body *body, uint64_t position);

#endif
