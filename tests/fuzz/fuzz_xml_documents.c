/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The documents that are neither a listing nor only an error. Options modulo 5: which parser. */
#include "ts3_fuzz.h"
#include "xml/ts3_xml_multi.h"

enum { PARSERS = 5 };

static enum ts3_err run_deleted(const struct ts3_fuzz_input *input, struct ts3_xml_fault *fault)
{
    struct ts3_xml_deleted deleted;
    enum ts3_err err = ts3_xml_deleted_parse(&input->alloc.alloc, input->text.data,
                                             input->text.len, &deleted, fault);
    if (err)
        REQUIRE(!deleted.item_count && !deleted.is_error);
    else if (deleted.is_error)
        REQUIRE(deleted.error.code.len > 0 && !deleted.item_count);
    for (size_t i = 0; i < deleted.item_count; i++)
        REQUIRE(deleted.items[i].key.len <= TS3_XML_MAX_KEY);
    ts3_xml_deleted_free(&deleted);
    return err;
}

static enum ts3_err run_uploads(const struct ts3_fuzz_input *input, struct ts3_xml_fault *fault)
{
    struct ts3_xml_uploads uploads;
    enum ts3_err err = ts3_xml_uploads_parse(&input->alloc.alloc, input->text.data,
                                             input->text.len, &uploads, fault);
    if (err)
        REQUIRE(!uploads.upload_count && !uploads.truncated);
    else
        REQUIRE(!uploads.truncated || uploads.next_key_marker.len > 0);
    for (size_t i = 0; i < uploads.upload_count; i++)
        REQUIRE(uploads.uploads[i].key.len > 0 && uploads.uploads[i].upload_id.len > 0);
    ts3_xml_uploads_free(&uploads);
    return err;
}

static enum ts3_err run_result(const struct ts3_fuzz_input *input, enum ts3_xml_result_kind kind,
                               struct ts3_xml_fault *fault)
{
    struct ts3_xml_result result;
    enum ts3_err err = ts3_xml_result_parse(&input->alloc.alloc, input->text.data, input->text.len,
                                            kind, &result, fault);
    if (err)
        REQUIRE(!result.text.len && !result.is_error);
    else if (result.is_error)
        REQUIRE(result.error.code.len > 0 && !result.text.len);
    else
        REQUIRE(result.text.len > 0 || kind == TS3_XML_RESULT_COMPLETE);
    ts3_xml_result_free(&result);
    return err;
}

FUZZ(documents)
{
    struct ts3_fuzz_input input;
    struct ts3_xml_fault fault = {""};
    enum ts3_err err;
    if (!ts3_fuzz_open(&input, bytes, size_bytes))
        return;
    ts3_xml_setup();
    switch (input.options % PARSERS) {
    case 0:
        err = run_deleted(&input, &fault);
        break;
    case 1:
        err = run_uploads(&input, &fault);
        break;
    default:
        err = run_result(&input, (enum ts3_xml_result_kind)(input.options % PARSERS - 2), &fault);
        break;
    }
    REQUIRE(!input.alloc.failed || err == TS3_ENOMEM);
    REQUIRE(!err || fault.text[0]);
    ts3_fuzz_close(&input);
}
