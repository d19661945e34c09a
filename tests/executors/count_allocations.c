// Preloaded into a Python process: counts the allocations that any thread makes while one marked
// call has the GIL released, which is while the native core works. glibc only.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

extern void* __libc_malloc(size_t);
extern void* __libc_calloc(size_t, size_t);
extern void* __libc_realloc(void*, size_t);
extern void* __libc_memalign(size_t, size_t);

static atomic_int marked, released, interposed;
static atomic_long count;

static void note(void) {
  if (atomic_load(&marked) && atomic_load(&released)) atomic_fetch_add(&count, 1);
}

void start_counting(void) {
  atomic_store(&count, 0);
  atomic_store(&marked, 1);
}
long stop_counting(void) {
  atomic_store(&marked, 0);
  return atomic_load(&count);
}

// Whether the GIL was ever released through here: a Python that exports its functions from the
// executable itself (Debian's) is found before any preloaded library.
int is_interposed(void) { return atomic_load(&interposed); }

void* PyEval_SaveThread(void) {
  static void* (*next)(void);
  if (next == NULL) next = (void* (*)(void))dlsym(RTLD_NEXT, "PyEval_SaveThread");
  void* state = next();
  atomic_store(&interposed, 1);
  atomic_store(&released, 1);
  return state;
}
void PyEval_RestoreThread(void* state) {
  static void (*next)(void*);
  if (next == NULL) next = (void (*)(void*))dlsym(RTLD_NEXT, "PyEval_RestoreThread");
  atomic_store(&released, 0);
  next(state);
}

void* malloc(size_t size) {
  note();
  return __libc_malloc(size);
}
void* calloc(size_t number, size_t size) {
  note();
  return __libc_calloc(number, size);
}
void* realloc(void* old, size_t size) {
  note();
  return __libc_realloc(old, size);
}
void* memalign(size_t alignment, size_t size) {
  note();
  return __libc_memalign(alignment, size);
}
void* aligned_alloc(size_t alignment, size_t size) {
  note();
  return __libc_memalign(alignment, size);
}
int posix_memalign(void** place, size_t alignment, size_t size) {
  note();
  *place = __libc_memalign(alignment, size);
  return *place == NULL ? ENOMEM : 0;
}
void* mmap(void* address, size_t length, int protection, int flags, int file, off_t offset) {
  note();
  return (void*)syscall(SYS_mmap, address, length, protection, flags, file, offset);
}
