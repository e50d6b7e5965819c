/* Times lookups through Berkeley DB for the bench `lookup`.
 *
 * usage: libdb FILE KEYS MODE    KEYS: one key a line; MODE: warm | once
 * warm: every key by one open handle whose cache holds the file, after one pass that fills it.
 * once: for every key open, look up, close.
 * Prints nanoseconds a lookup, and how many keys were found. Clock: CLOCK_MONOTONIC. */
#include <db.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static void check(int error, const char *what) {
    if (error) {
        fprintf(stderr, "%s: %s\n", what, db_strerror(error));
        exit(1);
    }
}

static DB *open_file(const char *file, int is_warm) {
    DB *db;
    check(db_create(&db, NULL, 0), "db_create");
    if (is_warm)
        check(db->set_cachesize(db, 0, 512u << 20, 1), "set_cachesize");
    check(db->open(db, NULL, file, NULL, DB_UNKNOWN, DB_RDONLY, 0), "open");
    return db;
}

static int look_up(DB *db, const char *text, size_t len) {
    DBT key, value;
    memset(&key, 0, sizeof key);
    memset(&value, 0, sizeof value);
    key.data = (void *)text;
    key.size = (u_int32_t)len;
    int error = db->get(db, NULL, &key, &value, 0);
    if (error != 0 && error != DB_NOTFOUND)
        check(error, "get");
    return error == 0;
}

int main(int argc, char **argv) {
    if (argc != 4)
        return 64;
    FILE *in = fopen(argv[2], "r");
    if (in == NULL)
        return 66;
    fseek(in, 0, SEEK_END);
    long size = ftell(in);
    rewind(in);
    char *text = malloc(size + 1);
    if (fread(text, 1, size, in) != (size_t)size)
        return 66;
    size_t count = 0;
    for (long i = 0; i < size; i++)
        count += text[i] == '\n';
    const char **keys = malloc(count * sizeof *keys);
    size_t *lens = malloc(count * sizeof *lens);
    char *at = text;
    for (size_t i = 0; i < count; i++) {
        char *end = memchr(at, '\n', text + size - at);
        keys[i] = at;
        lens[i] = end - at;
        at = end + 1;
    }
    size_t found = 0;
    double start;
    if (strcmp(argv[3], "warm") == 0) {
        DB *db = open_file(argv[1], 1);
        for (size_t i = 0; i < count; i++)
            look_up(db, keys[i], lens[i]);
        start = now();
        for (size_t i = 0; i < count; i++)
            found += look_up(db, keys[i], lens[i]);
        printf("%.1f %zu\n", (now() - start) / count, found);
        db->close(db, 0);
    } else {
        start = now();
        for (size_t i = 0; i < count; i++) {
            DB *db = open_file(argv[1], 0);
            found += look_up(db, keys[i], lens[i]);
            db->close(db, 0);
        }
        printf("%.1f %zu\n", (now() - start) / count, found);
    }
    return 0;
}
