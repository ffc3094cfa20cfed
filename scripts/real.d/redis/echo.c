/* A patch of redis 7.0: ECHO answers with a status line.
 *
 * echoCommand is the program's own, from server.c; the server knows it by its address only, in the table of commands. */
#include "server.h"

void echoCommand(client *c) {
    addReplyStatusFormat(c, "echo: %s", (char *) c->argv[1]->ptr);
}
