/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The error document. */
#include "ts3_fuzz.h"
#include "xml/ts3_xml_error.h"

FUZZ(error)
{
    struct ts3_fuzz_input input;
    struct ts3_xml_error error;
    struct ts3_xml_fault fault = {""};
    if (!ts3_fuzz_open(&input, bytes, size_bytes))
        return;
    ts3_xml_setup();
    enum ts3_err err = ts3_xml_error_parse(&input.alloc.alloc, input.text.data, input.text.len,
                                           &error, &fault);
    REQUIRE(!input.alloc.failed || err == TS3_ENOMEM);
    if (err)
        REQUIRE(fault.text[0] && !error.code.len && !error.message.len && !error.region.len);
    else
        REQUIRE(error.code.len > 0 && error.code.len <= TS3_XML_MAX_TEXT);
    ts3_xml_error_free(&error);
    ts3_fuzz_close(&input);
}
