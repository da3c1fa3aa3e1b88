/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See ts3_body.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "net/ts3_body.h"

#include <errno.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

_Static_assert(TS3_POOL_TOGETHER <= TS3_SHA256_LONG_MOST, "a worker's jobs are hashed by one call");

static bool body_run(struct ts3_job *job);
static void prepare_together(struct ts3_job *const *jobs, size_t count, bool *more);

void ts3_body_init(struct ts3_body *body, struct ts3_shared *shared,
                   const struct ts3_digest *digest, const void *data, int fd, uint64_t offset,
                   uint64_t size_bytes)
{
    memset(body, 0, sizeof *body);
    body->shared = shared;
    body->digest = digest;
    body->fd = fd;
    body->offset = offset;
    body->size_bytes = size_bytes;
    body->job.run = body_run;
    atomic_init(&body->job.stop, false);
    if (size_bytes == 0) {
        body->kind = TS3_BODY_NONE;
    } else if (fd < 0) {
        body->kind = TS3_BODY_MEMORY;
        body->data = data;
    } else {
        body->kind = size_bytes <= TS3_ENGINE_BODY_BYTES ? TS3_BODY_LOADED : TS3_BODY_STREAM;
    }
}

void ts3_body_free(struct ts3_body *body)
{
    if (body->fd >= 0)
        close(body->fd);
    body->fd = -1;
    ts3_sha256_long_free(&body->hash); /* of a job that was withdrawn between two slices */
    ts3_shared_give(body->shared, &body->block);
    body->data = NULL;
}

size_t ts3_body_cost(const struct ts3_body *body)
{
    if (body->kind == TS3_BODY_LOADED)
        return (size_t)body->size_bytes;
    return body->kind == TS3_BODY_STREAM ? 2 * TS3_BODY_CHUNK_BYTES : 0;
}

/* --- on a worker --- */

static void fail(struct ts3_body *body, enum ts3_err err, int number)
{
    body->error = err;
    body->error_number = number;
}

static bool stopped(const struct ts3_body *body)
{
    return atomic_load_explicit(&body->job.stop, memory_order_relaxed);
}

/* Reads size bytes of the region from position on; false when it failed or was stopped. */
static bool read_region(struct ts3_body *body, unsigned char *out, uint64_t position, size_t size)
{
    while (size > 0) {
        ssize_t got = pread(body->fd, out, size, (off_t)(body->offset + position));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            fail(body, TS3_EIO, got < 0 ? errno : 0);
            return false;
        }
        out += got;
        position += (uint64_t)got;
        size -= (size_t)got;
    }
    return true;
}

static size_t slice_at(const struct ts3_body *body, uint64_t position)
{
    uint64_t left = body->size_bytes - position;
    return left < TS3_BODY_SLICE_BYTES ? (size_t)left : TS3_BODY_SLICE_BYTES;
}

/* What the digests are of is at its end, or nobody wants them any more. */
static bool end_prepare(struct ts3_body *body)
{
    if (body->error == TS3_OK && !stopped(body)) {
        if (body->want_sha256)
            body->error = ts3_sha256_long_final_hex(&body->hash, body->sha256);
        if (body->want_md5 && body->error == TS3_OK)
            body->error =
                ts3_md5_base64(body->digest, body->data, (size_t)body->size_bytes, body->md5);
    }
    ts3_sha256_long_free(&body->hash);
    return false;
}

#ifdef RWF_NOWAIT
/* True when all of it was there without waiting for a disk. */
static bool read_at_once(struct ts3_body *body, unsigned char *out, uint64_t position, size_t size)
{
    struct iovec all = {.iov_base = out, .iov_len = size};
    ssize_t got = preadv2(body->fd, &all, 1, (off_t)(body->offset + position), RWF_NOWAIT);
    if (got < 0 && errno != EAGAIN && errno != EINTR)
        body->always_waits = true; /* that file system cannot say */
    return got == (ssize_t)size;
}
#else
static bool read_at_once(struct ts3_body *body, unsigned char *out, uint64_t position, size_t size)
{
    (void)out, (void)position, (void)size;
    body->always_waits = true;
    return false;
}
#endif

enum reading { READ, READ_LATER, READ_NOT };

/* A disk is waited for in a step of which the pool knows that it may block. */
static enum reading read_slice(struct ts3_body *body, unsigned char *out, size_t size)
{
    if (body->job.may_block) {
        body->job.may_block = body->always_waits;
        return read_region(body, out, body->at, size) ? READ : READ_NOT;
    }
    if (read_at_once(body, out, body->at, size))
        return READ;
    body->job.may_block = true;
    return READ_LATER;
}

/* Makes the next slice ready to be hashed, *bytes; how long it is, 0 when there is none to be had, and
 * then *later whether there will be in another step. */
static size_t begin_step(struct ts3_body *body, const unsigned char **bytes, bool *later)
{
    bool reads = body->kind != TS3_BODY_MEMORY;
    bool keeps = body->kind != TS3_BODY_STREAM;
    *later = false;
    if (stopped(body))
        return 0;
    size_t size = slice_at(body, body->at);
    size_t place = keeps ? (size_t)body->at : 0;
    if (body->want_sha256 && !body->hashing) {
        enum ts3_err err = ts3_sha256_long_init(body->digest, &body->hash);
        if (err != TS3_OK) {
            fail(body, err, 0);
            return 0;
        }
        body->hashing = true;
    }
    enum reading reading = reads ? read_slice(body, body->block.data + place, size) : READ;
    *later = reading == READ_LATER;
    if (reading != READ)
        return 0;
    *bytes = body->data + place;
    return size;
}

/* True when there is another slice. */
static bool end_step(struct ts3_body *body, size_t size, enum ts3_err err)
{
    if (err != TS3_OK)
        fail(body, err, 0);
    body->at += size;
    return size > 0 && body->error == TS3_OK && body->at < body->size_bytes ? true
                                                                            : end_prepare(body);
}

/* Reads the next slice of each body and hashes them side by side; more: which have another one. */
static void prepare_together(struct ts3_job *const *jobs, size_t count, bool *more)
{
    struct ts3_sha256_piece pieces[TS3_POOL_TOGETHER];
    size_t size[TS3_POOL_TOGETHER], hashed = 0;
    bool later[TS3_POOL_TOGETHER];
    for (size_t i = 0; i < count; i++) {
        struct ts3_body *body = TS3_MEMBER(jobs[i], struct ts3_body, job);
        const unsigned char *bytes = NULL;
        size[i] = begin_step(body, &bytes, &later[i]);
        if (size[i] > 0 && body->want_sha256)
            pieces[hashed++] = (struct ts3_sha256_piece){&body->hash, bytes, size[i]};
    }
    enum ts3_err err = hashed > 0 ? ts3_sha256_long_update(pieces, hashed) : TS3_OK;
    for (size_t i = 0; i < count; i++)
        more[i] = later[i] || end_step(TS3_MEMBER(jobs[i], struct ts3_body, job), size[i], err);
}

static bool prepare_step(struct ts3_body *body)
{
    bool more = false;
    prepare_together((struct ts3_job *[]){&body->job}, 1, &more);
    return more;
}

/* Reads the next slice of a chunk; true when there is another one. */
static bool chunk_step(struct ts3_body *body)
{
    const struct ts3_chunk *chunk = &body->chunk[body->filling];
    uint64_t begin = chunk->index * TS3_BODY_CHUNK_BYTES;
    uint64_t end = begin + TS3_BODY_CHUNK_BYTES;
    if (end > body->size_bytes)
        end = body->size_bytes;
    size_t size = slice_at(body, begin + body->at);
    if (size > end - begin - body->at)
        size = (size_t)(end - begin - body->at);
    if (stopped(body) || !read_region(body, chunk->data + body->at, begin + body->at, size))
        return false;
    body->at += size;
    return begin + body->at < end;
}

static bool body_run(struct ts3_job *job)
{
    struct ts3_body *body = TS3_MEMBER(job, struct ts3_body, job);
    return body->task == TS3_TASK_PREPARE ? prepare_step(body) : chunk_step(body);
}

static bool is_small(const struct ts3_body *body)
{
    return body->kind == TS3_BODY_NONE ||
           (body->kind == TS3_BODY_MEMORY && body->size_bytes <= TS3_BODY_INLINE_BYTES);
}

static enum ts3_err prepare_none(struct ts3_body *body)
{
    memcpy(body->sha256, TS3_SHA256_EMPTY, sizeof body->sha256);
    return body->want_md5 ? ts3_md5_base64(body->digest, "", 0, body->md5) : TS3_OK;
}

static enum ts3_err prepare_at_once(struct ts3_body *body)
{
    body->at = 0;
    body->hashing = false;
    if (body->kind == TS3_BODY_NONE)
        body->error = prepare_none(body);
    else
        while (prepare_step(body))
            continue;
    body->prepared = body->error == TS3_OK;
    return body->error;
}

/* --- on the submitter's thread --- */

void ts3_body_prepare_small(struct ts3_body *body)
{
    if (!is_small(body))
        return;
    (void)prepare_at_once(body);
    body->error = TS3_OK; /* ts3_body_prepare tries again, and tells */
}

/* --- on the loop --- */

static void start_job(struct ts3_body *body, enum ts3_body_task task, struct ts3_pool *pool,
                      bool urgent)
{
    bool hashes = task == TS3_TASK_PREPARE && body->want_sha256;
    bool together = hashes && ts3_digest_lanes(body->digest) > 1;
    body->task = task;
    body->at = 0;
    body->working = true;
    body->job.run_together = together ? prepare_together : NULL;
    body->job.steps = (uint32_t)(body->size_bytes / TS3_BODY_SLICE_BYTES) + 1;
    body->job.taken = 0;
    body->always_waits = body->always_waits || !together;
    body->job.may_block = body->always_waits;
    body->hashing = false;
    ts3_pool_submit(pool, &body->job, urgent);
}

static enum ts3_err allocate(struct ts3_body *body)
{
    size_t cost = ts3_body_cost(body);
    if (cost == 0 || body->block.data != NULL)
        return TS3_OK;
    enum ts3_err err = ts3_shared_take(body->shared, cost, &body->block);
    if (err != TS3_OK)
        return err;
    body->data = body->block.data;
    if (body->kind == TS3_BODY_STREAM) {
        body->chunk[0].data = body->block.data;
        body->chunk[1].data = body->block.data + TS3_BODY_CHUNK_BYTES;
    }
    return TS3_OK;
}

enum ts3_err ts3_body_prepare(struct ts3_body *body, struct ts3_pool *pool, bool urgent)
{
    if (body->prepared)
        return TS3_OK;
    enum ts3_err err = allocate(body);
    if (err != TS3_OK)
        return err;
    bool digests = body->want_sha256 || body->want_md5;
    bool nothing = !digests && (body->kind == TS3_BODY_MEMORY || body->kind == TS3_BODY_STREAM);
    if (nothing) {
        body->prepared = true;
    } else if (is_small(body)) {
        err = prepare_at_once(body);
    } else {
        start_job(body, TS3_TASK_PREPARE, pool, urgent);
    }
    return err;
}

void ts3_body_done(struct ts3_body *body)
{
    body->working = false;
    if (body->error != TS3_OK || stopped(body))
        return;
    if (body->task == TS3_TASK_PREPARE)
        body->prepared = true;
    else
        body->chunk[body->filling].valid = true;
}

/* Has a worker fill the chunk that is read next, or else the one behind it. */
static void fill_ahead(struct ts3_body *body, struct ts3_pool *pool)
{
    uint64_t current = body->position / TS3_BODY_CHUNK_BYTES;
    for (uint64_t index = current; index <= current + 1 && !body->working; index++) {
        if (index * TS3_BODY_CHUNK_BYTES >= body->size_bytes)
            return;
        struct ts3_chunk *chunk = &body->chunk[index % 2];
        if (chunk->valid && chunk->index == index)
            continue;
        chunk->index = index;
        chunk->valid = false;
        body->filling = (unsigned)(index % 2);
        start_job(body, TS3_TASK_CHUNK, pool, true);
    }
}

static size_t read_chunks(struct ts3_body *body, void *out, size_t size, struct ts3_pool *pool,
                          bool *pause)
{
    uint64_t index = body->position / TS3_BODY_CHUNK_BYTES;
    const struct ts3_chunk *chunk = &body->chunk[index % 2];
    bool here = chunk->valid && chunk->index == index;
    if (here) {
        uint64_t left = (index + 1) * TS3_BODY_CHUNK_BYTES - body->position;
        if (size > left)
            size = (size_t)left;
        memcpy(out, chunk->data + body->position % TS3_BODY_CHUNK_BYTES, size);
        body->position += size;
    }
    fill_ahead(body, pool);
    *pause = !here;
    return here ? size : 0;
}

size_t ts3_body_read(struct ts3_body *body, void *out, size_t size, struct ts3_pool *pool,
                     bool *pause)
{
    *pause = false;
    uint64_t left = body->size_bytes - body->position;
    if (size > left)
        size = (size_t)left;
    if (size == 0 || body->error != TS3_OK)
        return 0;
    if (body->kind == TS3_BODY_STREAM)
        return read_chunks(body, out, size, pool, pause);
    memcpy(out, body->data + body->position, size);
    body->position += size;
    return size;
}

enum ts3_err ts3_body_seek(struct ts3_body *body, uint64_t position)
{
    if (position > body->size_bytes)
        return TS3_EINVAL;
    body->position = position;
    return TS3_OK;
}
