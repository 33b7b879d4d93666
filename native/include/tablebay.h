/* Tablebay's tables from C, and from whatever can call C: one table in this process, without servers.
 *
 * libtablebay.so beside the Python package's native module has these. All is in native byte order, which is
 * little-endian. Every function may be called from any thread, but for tb_free, which must be the table's last call. A
 * function that fails returns -1 or a null pointer, changes nothing that it does not say, and leaves its reason for
 * tb_last_error; none ends the process.
 */
#ifndef TABLEBAY_H
#define TABLEBAY_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Raised when a function changes; never when one is added. */
#define TB_ABI_VERSION 1
uint32_t tb_abi_version(void);

typedef struct tb_table tb_table;

/* "KIND: what was found, what is wanted", KIND an error class of the Python package; of this thread's last failure,
 * "" before the first. Good until this thread's next failure. */
const char* tb_last_error(void);

/* A table without rows.
 * dtype: "float32", "bfloat16", "float16" or "int64"; rows and gradients are float32 or int64.
 * optimizer: a name and all its parameters, by spaces: "Adagrad learning_rate=0.05 initial_accumulator=0.1
 *   epsilon=1e-8"; initializer likewise: "Normal mean=0 stddev=0.01". Names and meanings: docs/optimizers.md; words
 *   among values are their places in the list there, from 0.
 * seed: new rows are a function of it, the name, the key and the column. */
tb_table* tb_create(const char* name, uint32_t dim, const char* dtype, const char* optimizer, const char* initializer,
                    uint64_t seed);

/* Rows of `count` keys to rows[count * dim]. create: 1 makes a row of a key that has none, 0 reads it as zeros. */
int tb_pull(tb_table* table, const uint64_t* keys, size_t count, void* rows, int create);

/* One update of each key's row by gradients[count * dim]; those of a key that repeats are summed first. A NaN or an
 * infinity is refused, and then no row changes. */
int tb_push(tb_table* table, const uint64_t* keys, size_t count, const void* gradients);

/* How many rows there are. */
uint64_t tb_rows(const tb_table* table);

/* The table with its optimizer's state as a file, which is there as a whole or as it was before. Pushes may go on
 * meanwhile: it has the rows of one moment. One save of a table at a time. */
int tb_save(tb_table* table, const char* path);

/* The table that tb_save wrote: it goes on bit for bit as the one that was saved. Every byte is checked. */
tb_table* tb_load(const char* path);

/* The end of a table; null is none. */
void tb_free(tb_table* table);

#ifdef __cplusplus
}
#endif
#endif
