/* SPDX-License-Identifier: GPL-2.0-or-later */
/* TLS in front of a plain server of the tests: ends it, hands the bytes on, and can do so badly.
 * The certificates are made here.
 *
 * Owner: who starts it stops it.  Thread: one that accepts, one a connection.  Errors: end the
 * program. */
#ifndef TEST_NET_TLS_H
#define TEST_NET_TLS_H

#include "test_net_listener.h"
#include "test_net_server.h"

enum net_tls_fault {
    NET_TLS_FINE,
    NET_TLS_RESET,      /* in the middle of the handshake */
    NET_TLS_CLOSE,      /* likewise, without a word */
    NET_TLS_SILENT,     /* says nothing to the first message */
    NET_TLS_PLAIN,      /* answers in plain HTTP */
    NET_TLS_GARBAGE,    /* answers what is neither */
    NET_TLS_STRANGER,   /* a certificate of nobody that is trusted */
    NET_TLS_OTHER_NAME, /* a certificate for another host */
    NET_TLS_EXPIRED,
    NET_TLS_CUT_RECORD, /* the answer's last record breaks off in the middle */
    NET_TLS_BAD_RECORD, /* a byte of the answer's last record is wrong */
    NET_TLS_NO_NOTIFY   /* the connection ends behind half of the answer, with no word of TLS */
};

struct net_tls {
    struct net_listener listener;
    int backend_port;
    enum net_tls_fault fault;
    int faulty;          /* so many connections meet the fault, and all others none */
    atomic_int silences; /* connections that are kept waiting */
};

void net_tls_start(struct net_tls *tls, int backend_port, enum net_tls_fault fault, int faulty);
/* Where the engine finds it, and whom it is to trust; before net_engine_open. */
void net_tls_lead(const struct net_tls *tls, struct net_engine *net);
void net_tls_stop(struct net_tls *tls);
/* A file with the certificate that is to be trusted; made once for the program. */
const char *net_tls_ca_file(void);

#endif
