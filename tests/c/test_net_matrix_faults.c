/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The faults of the matrix, and the harm that each one does by the rules. See test_net_matrix.h. */
#include <stdio.h>

#include "test_net_matrix_acts.h"

#define T (1u << TS3_KIND_TRANSPORT)
#define TIME (1u << TS3_KIND_TIMEOUT)
#define P (1u << TS3_KIND_PROTOCOL)
#define I (1u << TS3_KIND_INTEGRITY)

/* A connection that breaks, or says nothing more. */
#define BROKEN .harm = HARM_BROKEN, .kinds = T, .connection = CONN_LOST
#define SILENT(what) .harm = HARM_BROKEN, .kinds = TIME, .connection = CONN_LOST, .silence = what
/* An answer that breaks the rules of HTTP, or of S3; where the connection must not be used again. */
#define WRONG(which) .harm = HARM_BROKEN, .kinds = which, .connection = CONN_ANY
#define FINE .harm = HARM_NONE, .connection = CONN_KEPT
#define FINE_LAST .harm = HARM_NONE, .connection = CONN_LOST
#define FINE_ANY .harm = HARM_NONE, .connection = CONN_ANY
#define LENIENT .harm = HARM_LENIENT, .kinds = T | P | I, .connection = CONN_ANY
#define ANSWER(number, text) .harm = HARM_ANSWER, .status = number, .code = text

#define DOCUMENT "<?xml version=\"1.0\"?><Error><Code>%s</Code><Message>because</Message></Error>"
#define ERROR(code)                                                                                \
    "<?xml version=\"1.0\"?><Error><Code>" code "</Code><Message>because</Message></Error>"
#define PAGE "<!DOCTYPE html>\n<html><body><h1>502 Bad Gateway</h1><hr>a proxy</body></html>\n"
#define REGION(code)                                                                               \
    "<Error><Code>" code "</Code><Message>m</Message><Region>eu-west-3</Region></Error>"

const struct matrix_fault matrix_faults[] = {
    /* no connection */
    {"refused", .special = REFUSED, .harm = HARM_UNSENT, .kinds = T, .connection = CONN_LOST},
    {"not answered by TCP", .special = UNANSWERED, .harm = HARM_UNSENT, .kinds = TIME,
     .connection = CONN_LOST, .silence = SILENT_CONNECT},
    {"reset at once", .special = AT_ACCEPT, BROKEN},

    /* while the request is sent */
    {"reset within the request's body", matrix_stop_before, ACT_RESET, .needs = OP_BODY,
     .early = true, BROKEN},
    {"closed within the request's body", matrix_stop_before, ACT_CLOSE, .needs = OP_LARGE,
     .early = true, BROKEN},
    {"silent within the request's body", matrix_read_no_more, .needs = OP_LARGE, .early = true,
     SILENT(SILENT_SEND)},
    {"an answer before the body was read", matrix_early, .needs = OP_BODY, .early = true, FINE_ANY},
    {"an answer, and a reset before the body was read", matrix_early_reset, .needs = OP_LARGE,
     .early = true, BROKEN},
    {"403 before the body was read", matrix_early_refusal, .text = DOCUMENT, .needs = OP_BODY,
     .early = true, ANSWER(403, "AccessDenied"), .connection = CONN_LOST},
    {"503 before the body was read", matrix_early_refusal, .text = DOCUMENT, .needs = OP_BODY,
     .early = true, ANSWER(503, "SlowDown"), .connection = CONN_LOST},

    /* before and within the answer's head */
    {"reset before the answer", matrix_stop_before, ACT_RESET, BROKEN},
    {"closed before the answer", matrix_stop_before, ACT_CLOSE, BROKEN},
    {"silent before the answer", matrix_stop_before, ACT_SILENT, SILENT(SILENT_WAIT)},
    {"reset within the headers", matrix_stop_in_head, ACT_RESET, BROKEN},
    {"closed within the headers", matrix_stop_in_head, ACT_CLOSE, BROKEN},
    {"silent within the headers", matrix_stop_in_head, ACT_SILENT, SILENT(SILENT_WAIT)},
    {"one byte at a time", matrix_drip, FINE},
    {"not HTTP", matrix_instead, ACT_CLOSE, "SSH-2.0-OpenSSH_9.2\r\n", WRONG(P)},
    {"HTTP/0.9", matrix_instead, ACT_CLOSE, "just these bytes\n", WRONG(P)},
    {"HTTP/3.7", matrix_version, NET_CLOSE, "HTTP/3.7", LENIENT},
    {"a status line without a number", matrix_status, NET_CLOSE, "abc", WRONG(P)},
    {"a status of four digits", matrix_status, NET_CLOSE, "2000 OK", WRONG(P)},
    {"a status below 100", matrix_status, NET_CLOSE, "099 Odd", WRONG(P | 1u << TS3_KIND_SERVICE)},
    {"a status without a reason", matrix_status, NET_KEEP, "200",
     .spares = OP_WINDOW | OP_NO_CONTENT, FINE},
    {"a header without a colon", matrix_extra, NET_KEEP, "nothing of a header\r\n", LENIENT},
    {"a NUL within a header", matrix_nul, LENIENT},
    {"line feeds alone", matrix_line_feeds, FINE_ANY},
    {"a folded header", matrix_extra, NET_KEEP, "x-folded: a\r\n  b\r\n", FINE},
    {"a header of 64 KiB", matrix_long_header, 64 << 10, FINE},
    {"a header of 200 KiB", matrix_long_header, 200 << 10, WRONG(P)},
    {"headers without end", matrix_endless, ENDLESS_HEAD, "x-more: and more\r\n", WRONG(P)},
    {"a header without end", matrix_endless, ENDLESS_HEAD, "x-more-and-more", WRONG(P)},
    {"200 times 100", matrix_first, 200, "HTTP/1.1 100 Continue\r\n\r\n", FINE},
    {"100 without end", matrix_endless, ENDLESS_ANSWERS,
     "HTTP/1.1 100 Continue\r\n\r\n", WRONG(P)},
    {"103 with headers of its own", matrix_first, 1,
     "HTTP/1.1 103 Early Hints\r\nETag: \"e9\"\r\nContent-Length: 3\r\nContent-Range: bytes 1-3/4"
     "\r\n\r\n", FINE},
    {"100, and closed", matrix_instead, ACT_CLOSE, "HTTP/1.1 100 Continue\r\n\r\n", BROKEN},
    {"100, and silent", matrix_instead, ACT_SILENT, "HTTP/1.1 100 Continue\r\n\r\n",
     SILENT(SILENT_WAIT)},
    {"101 unasked", matrix_instead, ACT_CLOSE,
     "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\nxyz",
     WRONG(T | P | 1u << TS3_KIND_SERVICE)},
    {"HTTP/1.0", matrix_version, NET_CLOSE, "HTTP/1.0", FINE_LAST},
    {"Connection: close", matrix_extra, NET_CLOSE, "Connection: close\r\n", FINE_LAST},

    /* lengths, and the body */
    {"closed behind the head", matrix_stop_behind_head, ACT_CLOSE, .needs = OP_ANSWERS, BROKEN},
    {"reset within the body", matrix_stop_in_body, ACT_RESET, .needs = OP_ANSWERS, BROKEN},
    {"closed within the body", matrix_stop_in_body, ACT_CLOSE, .needs = OP_ANSWERS, BROKEN},
    {"silent within the body", matrix_stop_in_body, ACT_SILENT, .needs = OP_ANSWERS,
     SILENT(SILENT_BODY)},
    {"half a document", matrix_truncated, .needs = OP_XML, WRONG(P), },
    {"half a range", matrix_truncated, .needs = OP_WINDOW, WRONG(I)},
    {"a body without end", matrix_endless, ENDLESS_BODY, "<a>and more of it, and more</a>",
     .spares = OP_HEAD | OP_NO_CONTENT | OP_XML, WRONG(P | I)},
    {"longer than promised", matrix_surplus, .text = "and more", FINE_ANY},
    {"another answer behind the answer", matrix_surplus,
     .text = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", FINE_ANY},
    {"promises too much, and closes", matrix_too_long, ACT_CLOSE, .needs = OP_ANSWERS,
     .spares = OP_WINDOW, BROKEN},
    {"promises too much, and is silent", matrix_too_long, ACT_SILENT, .needs = OP_ANSWERS,
     .spares = OP_WINDOW, SILENT(SILENT_BODY)},
    {"promises more than the range", matrix_too_long, ACT_CLOSE, .needs = OP_WINDOW, WRONG(I)},
    {"no length, and closes", matrix_length, ACT_CLOSE, "", .spares = OP_BYTES | OP_HEAD,
     FINE_LAST},
    {"no length, and closes, of bytes", matrix_length, ACT_CLOSE, "", .needs = OP_BYTES, WRONG(I)},
    {"no length to a HEAD", matrix_length, ACT_KEEP, "", .needs = OP_HEAD, FINE_ANY},
    {"no length, and is silent", matrix_length, ACT_SILENT, "",
     .spares = OP_WINDOW | OP_BYTES | OP_HEAD | OP_NO_CONTENT, SILENT(SILENT_BODY)},
    {"no length, and is silent behind the range", matrix_length, ACT_SILENT, "",
     .needs = OP_WINDOW, .harm = HARM_NONE, .connection = CONN_LOST, .silence = SILENT_BODY},
    {"a length below zero", matrix_length, ACT_CLOSE, "Content-Length: -5\r\n",
     .spares = OP_HEAD | OP_NO_CONTENT, WRONG(P)},
    {"a length that is no number", matrix_length, ACT_CLOSE, "Content-Length: many\r\n",
     .spares = OP_HEAD | OP_NO_CONTENT, WRONG(P)},
    {"a length beyond all numbers", matrix_length, ACT_CLOSE,
     "Content-Length: 99999999999999999999999\r\n", .spares = OP_HEAD | OP_NO_CONTENT, WRONG(P)},
    {"two lengths", matrix_length_twice, -2, .needs = OP_ANSWERS, WRONG(P)},
    {"a length twice", matrix_length_twice, 0, .needs = OP_ANSWERS, FINE_ANY},
    {"in chunks", matrix_chunks, .text = "\r\n0\r\n\r\n", .needs = OP_ANSWERS, FINE},
    {"chunks and a trailer", matrix_chunks, .text = "\r\n0\r\nETag: \"e9\"\r\n\r\n",
     .needs = OP_ANSWERS, FINE},
    {"chunks without the last", matrix_chunks, .text = "", .needs = OP_ANSWERS,
     .spares = OP_WINDOW, BROKEN},
    {"a whole range in chunks without the last", matrix_chunks, .text = "", .needs = OP_WINDOW,
     FINE_LAST},
    {"more in chunks than the range", matrix_chunks, 5, "\r\n0\r\n\r\n", .needs = OP_WINDOW,
     WRONG(I)},
    {"less in chunks than the range", matrix_chunks, -5, "\r\n0\r\n\r\n", .needs = OP_WINDOW,
     WRONG(I | T)},
    {"a chunk's size is no number", matrix_chunks, 0, "!\r\nzz\r\n", .needs = OP_ANSWERS,
     WRONG(P | T)},
    {"a chunk's size is below zero", matrix_chunks, 0, "!\r\n-4\r\n", .needs = OP_ANSWERS,
     WRONG(P | T)},
    {"a chunk's size is beyond all numbers", matrix_chunks, 0, "!\r\nfffffffffffffffffff\r\n",
     .needs = OP_ANSWERS, WRONG(P | T)},
    {"a chunk is longer than its size", matrix_chunks, 0, "!\r\n3\r\n", .needs = OP_ANSWERS,
     WRONG(P | T)},

    /* what the answer says of itself */
    {"the range is shifted", matrix_range, RANGE_SHIFTED, .needs = OP_WINDOW, WRONG(I)},
    {"the range is shorter", matrix_range, RANGE_SHORT, .needs = OP_WINDOW, WRONG(I)},
    {"the range is longer", matrix_range, RANGE_LONG, .needs = OP_WINDOW, WRONG(I)},
    {"the range passes the end", matrix_range, RANGE_OTHER_TOTAL, .needs = OP_WINDOW, WRONG(I)},
    {"the range is missing", matrix_range, 0, "", .needs = OP_WINDOW, WRONG(I)},
    {"the range cannot be read", matrix_range, 0, "Content-Range: bytes all of them\r\n",
     .needs = OP_WINDOW, WRONG(I)},
    {"the range is of no bytes", matrix_range, 0, "Content-Range: bytes */1000\r\n",
     .needs = OP_WINDOW, WRONG(I)},
    {"a range with status 200", matrix_status, NET_KEEP, "200 OK", .needs = OP_WINDOW, FINE},
    {"status 200 and a shifted range", matrix_range_200, RANGE_SHIFTED, .needs = OP_WINDOW,
     WRONG(I)},
    {"status 200 and a shorter range", matrix_range_200, RANGE_SHORT, .needs = OP_WINDOW, WRONG(I)},
    {"the range is ignored", matrix_whole, .needs = OP_WINDOW, WRONG(I)},
    {"a range unasked", matrix_status, NET_KEEP, "206 Partial Content", .spares = OP_WINDOW,
     WRONG(P)},
    {"204 to a GET", matrix_status, NET_KEEP, "204 No Content", .needs = OP_ANSWERS | OP_SAFE,
     WRONG(P)},
    {"another ETag", matrix_etag, .text = "ETag: \"e2\"\r\n", .needs = OP_ETAG,
     .harm = HARM_CHANGED, .kinds = 1u << TS3_KIND_CHANGED, .code = "", .connection = CONN_ANY},
    {"an ETag of 300 bytes", matrix_etag, 300, .needs = OP_ETAG, .harm = HARM_CHANGED,
     .kinds = 1u << TS3_KIND_CHANGED, .code = "", .connection = CONN_ANY},
    {"no ETag", matrix_etag, .text = "", .needs = OP_ETAG, WRONG(P)},
    {"a weak ETag", matrix_etag, .text = "ETag: W/\"e1\"\r\n", .needs = OP_ETAG, FINE},

    /* documents */
    {"malformed XML", matrix_body, .text = "<ListBucketResult><Key>a</Size>", .needs = OP_XML,
     WRONG(P)},
    {"another document", matrix_body, .text = "<Something><Else/></Something>", .needs = OP_XML,
     WRONG(P)},
    {"an empty document", matrix_body, .text = "", .needs = OP_XML, WRONG(P)},
    {"a document with entities", matrix_body,
     .text = "<!DOCTYPE a [<!ENTITY b \"bb\"><!ENTITY c \"&b;&b;\">]><ListBucketResult>&c;"
             "</ListBucketResult>", .needs = OP_XML, WRONG(P)},
    {"a page for people", matrix_page, .text = PAGE, .needs = OP_ANSWERS, WRONG(P | I)},
    {"spaces before the result", matrix_spaces, .needs = OP_SLOW, FINE},
    {"200 with InternalError", matrix_body, .text = ERROR("InternalError"), .needs = OP_LATE,
     ANSWER(200, "InternalError")},
    {"200 with SlowDown", matrix_body, .text = ERROR("SlowDown"), .needs = OP_LATE,
     ANSWER(200, "SlowDown")},
    {"200 with an error of its own", matrix_body, .text = ERROR("OutOfLuck"), .needs = OP_LATE,
     ANSWER(200, "OutOfLuck")},
    {"200, spaces, and an error", matrix_body,
     .text = "\n \n  <Error><Code>InternalError</Code><Message>late</Message></Error>",
     .needs = OP_SLOW, ANSWER(200, "InternalError")},
    {"200 with an error, of a listing", matrix_body, .text = ERROR("InternalError"),
     .needs = OP_XML | OP_SAFE, WRONG(P)},

    /* refusals that say more */
    {"307 to another host", matrix_answer_with,
     .text = "Location: http://127.0.0.1:1/elsewhere\r\n\r\n", ANSWER(307, "")},
    {"301 with the region", matrix_answer_with,
     .text = "x-amz-bucket-region: eu-west-3\r\n\r\n" REGION("PermanentRedirect"),
     .harm = HARM_CORRECTED, .status = 301, .code = "PermanentRedirect"},
    {"400 with the region", matrix_answer_with,
     .text = "x-amz-bucket-region: eu-west-3\r\n\r\n" REGION("AuthorizationHeaderMalformed"),
     .harm = HARM_CORRECTED, .status = 400, .code = "AuthorizationHeaderMalformed"},
    {"400 with the region in the header", matrix_answer_with,
     .text = "x-amz-bucket-region: eu-west-3\r\n\r\n", .harm = HARM_CORRECTED, .status = 400,
     .code = ""},
    {"403 of a wrong clock", matrix_answer_with,
     .text = "Date: Fri, 24 May 2013 02:00:00 GMT\r\n\r\n" ERROR("RequestTimeTooSkewed"),
     .harm = HARM_CORRECTED, .status = 403, .code = "RequestTimeTooSkewed"},
    {"400 RequestTimeout", matrix_answer, .text = DOCUMENT, ANSWER(400, "RequestTimeout"),
     .spares = OP_HEAD, .connection = CONN_LOST},
    {"400 BadDigest", matrix_answer, .text = DOCUMENT, ANSWER(400, "BadDigest")},
    {"400 IncompleteBody", matrix_answer, .text = DOCUMENT, ANSWER(400, "IncompleteBody")},
    {"409 OperationAborted", matrix_answer, .text = DOCUMENT, ANSWER(409, "OperationAborted")},
    {"503 ServiceUnavailable", matrix_answer, .text = DOCUMENT, ANSWER(503, "ServiceUnavailable")},
    {"500 that says SlowDown", matrix_answer, .text = DOCUMENT, ANSWER(500, "SlowDown")},
    {"503, Retry-After: 3", matrix_answer_with, .text = "Retry-After: 3\r\n\r\n" ERROR("SlowDown"),
     ANSWER(503, "SlowDown"), .wait_ms = 3000},
    {"429, Retry-After: an hour", matrix_answer_with, .text = "Retry-After: 3600\r\n\r\n",
     ANSWER(429, ""), .wait_ms = 3600000},
    {"503, Retry-After: a date", matrix_answer_with,
     .text = "Retry-After: Fri, 24 May 2013 00:00:04 GMT\r\n\r\n" ERROR("ServiceUnavailable"),
     ANSWER(503, "ServiceUnavailable"), .wait_ms = 4000},
    {"503, Retry-After: 0", matrix_answer_with, .text = "Retry-After: 0\r\n\r\n", ANSWER(503, "")},
    {"503, Retry-After: soon", matrix_answer_with, .text = "Retry-After: soon\r\n\r\n",
     ANSWER(503, "")},
    {"403 with Retry-After", matrix_answer_with, .text = "Retry-After: 1\r\n\r\n", ANSWER(403, "")},
    {"403, silent within the document", matrix_answer_cut, ACT_SILENT, DOCUMENT, .spares = OP_HEAD,
     ANSWER(403, NULL), .silence = SILENT_BODY, .connection = CONN_LOST},
    {"404, silent within the document", matrix_answer_cut, ACT_SILENT, DOCUMENT, .spares = OP_HEAD,
     ANSWER(404, NULL), .silence = SILENT_BODY, .connection = CONN_LOST},
    {"500, silent within the document", matrix_answer_cut, ACT_SILENT, DOCUMENT, .spares = OP_HEAD,
     ANSWER(500, NULL), .silence = SILENT_BODY, .connection = CONN_LOST},
    {"500, reset within the document", matrix_answer_cut, ACT_RESET, DOCUMENT, .spares = OP_HEAD,
     ANSWER(500, NULL), .connection = CONN_LOST},

    /* connections that were good once; arg says what happens to the idle one */
    {"408 on the idle connection", .special = WARM, .arg = ACT_KEEP,
     .text = "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n", FINE_LAST},
    {"408 on the idle connection, which closes", .special = WARM, .arg = ACT_CLOSE,
     .text = "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n", FINE_LAST},
    {"the idle connection closes", .special = WARM, .arg = ACT_CLOSE, .text = "", FINE_LAST},
    {"the idle connection is reset", .special = WARM, .arg = ACT_RESET, .text = "", FINE_LAST},
    {"the used connection closes at the request", matrix_stop_before, ACT_CLOSE, .special = WARM,
     BROKEN},
    {"the used connection is reset at the request", matrix_stop_before, ACT_RESET,
     .special = WARM, BROKEN},

    /* TLS */
    {"nothing, over TLS", .special = OVER_TLS, .arg = NET_TLS_FINE, FINE},
    {"reset within the handshake", .special = OVER_TLS, .arg = NET_TLS_RESET, .harm = HARM_UNSENT,
     .kinds = T, .connection = CONN_LOST},
    {"closed within the handshake", .special = OVER_TLS, .arg = NET_TLS_CLOSE,
     .harm = HARM_UNSENT, .kinds = T, .connection = CONN_LOST},
    {"silent within the handshake", .special = OVER_TLS, .arg = NET_TLS_SILENT,
     .harm = HARM_UNSENT, .kinds = TIME, .connection = CONN_LOST, .silence = SILENT_CONNECT},
    {"plain HTTP in place of TLS", .special = OVER_TLS, .arg = NET_TLS_PLAIN, .harm = HARM_UNSENT,
     .kinds = T, .connection = CONN_LOST},
    {"garbage in place of TLS", .special = OVER_TLS, .arg = NET_TLS_GARBAGE, .harm = HARM_UNSENT,
     .kinds = T, .connection = CONN_LOST},
    {"a certificate of nobody's", .special = OVER_TLS, .arg = NET_TLS_STRANGER,
     .harm = HARM_TRUST, .kinds = T, .code = TS3_CODE_UNTRUSTED},
    {"a certificate for another name", .special = OVER_TLS, .arg = NET_TLS_OTHER_NAME,
     .harm = HARM_TRUST, .kinds = T, .code = TS3_CODE_UNTRUSTED},
    {"a certificate that has expired", .special = OVER_TLS, .arg = NET_TLS_EXPIRED,
     .harm = HARM_TRUST, .kinds = T, .code = TS3_CODE_UNTRUSTED},
    {"a record of TLS is cut", .special = OVER_TLS, .arg = NET_TLS_CUT_RECORD, BROKEN},
    {"a record of TLS is wrong", .special = OVER_TLS, .arg = NET_TLS_BAD_RECORD, BROKEN},
    {"TLS ends without a word", .special = OVER_TLS, .arg = NET_TLS_NO_NOTIFY, BROKEN},
};
const size_t matrix_fault_count = sizeof matrix_faults / sizeof matrix_faults[0];

static const struct {
    int status;
    const char *code; /* what S3 says with it */
} statuses[] = {
    {301, "PermanentRedirect"}, {302, "Found"},
    {304, ""},                  {307, "TemporaryRedirect"},
    {400, "InvalidRequest"},    {401, "InvalidAccessKeyId"},
    {403, "AccessDenied"},      {404, "NoSuchKey"},
    {405, "MethodNotAllowed"},  {407, "ProxyAuthenticationRequired"},
    {408, "RequestTimeout"},    {409, "BucketNotEmpty"},
    {412, "PreconditionFailed"}, {416, "InvalidRange"},
    {425, "TooEarly"},          {429, "TooManyRequests"},
    {500, "InternalError"},     {501, "NotImplemented"},
    {502, "BadGateway"},        {503, "SlowDown"},
    {504, "GatewayTimeout"},    {505, "VersionNotSupported"},
    {520, "WebServerIsDown"},   {600, "BeyondAll"},
};

enum { NO_DOCUMENT, S3_DOCUMENT, HTML, MALFORMED, CUT, DOCUMENTS };

bool matrix_status_fault(size_t index, struct matrix_fault *fault, char *name, size_t name_size)
{
    static const char *const texts[DOCUMENTS] = {NULL, DOCUMENT, PAGE, "<Error><Code>%s</Code>",
                                                 DOCUMENT};
    static const char *const names[DOCUMENTS] = {"without a document", "with S3's document",
                                                 "with a page", "with half a document",
                                                 "with a document that is cut off"};
    size_t which = index / DOCUMENTS;
    int document = (int)(index % DOCUMENTS);
    if (which >= sizeof statuses / sizeof statuses[0])
        return false;
    int status = statuses[which].status;
    (void)snprintf(name, name_size, "%d %s", status, names[document]);
    *fault = (struct matrix_fault){
        .name = name,
        .act = document == CUT ? matrix_answer_cut : matrix_answer,
        .arg = ACT_CLOSE,
        .text = texts[document],
        .spares = document == CUT ? OP_HEAD : 0,
        .code = document == S3_DOCUMENT ? statuses[which].code : NULL,
        .harm = HARM_ANSWER,
        .status = status,
        .connection = document == CUT || status == 408 ? CONN_LOST : CONN_KEPT,
    };
    if (status == 304 && document != NO_DOCUMENT) /* which never has one */
        fault->needs = OP_SAFE | OP_BODY;
    return true;
}

/* A body of many megabytes takes its time, so that it only meets what has to do with it. */
bool matrix_applies(const struct matrix_op *op, const struct matrix_fault *fault)
{
    bool fits = (op->traits & fault->needs) == fault->needs && !(op->traits & fault->spares);
    return fits && (!(op->traits & OP_STREAMED) || fault->early);
}
