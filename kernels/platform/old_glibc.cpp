// For wheels, which run where the C library is as old as glibc 2.28 (manylinux_2_28) though they are linked to a newer
// one: the few functions that a newer one has in another version are taken in the version that both have.
//
// The linker is told to --wrap them, so that the standard C++ library, which wheels carry within, takes them too.

#if defined(HEBBLINE_MANYLINUX)

#include <pthread.h>
#include <sys/stat.h>

#if defined(__x86_64__)
#define HEBBLINE_OLD(alias, function) __asm__(".symver " #alias ", " #function "@GLIBC_2.2.5")
constexpr int kStatVersion = 1;
#else
#define HEBBLINE_OLD(alias, function) __asm__(".symver " #alias ", " #function "@GLIBC_2.17")
constexpr int kStatVersion = 0;
#endif

extern "C" {

HEBBLINE_OLD(old_pthread_create, pthread_create);
HEBBLINE_OLD(old_pthread_join, pthread_join);
HEBBLINE_OLD(old_pthread_once, pthread_once);
HEBBLINE_OLD(old_fxstat64, __fxstat64);
HEBBLINE_OLD(old_exp, exp);
HEBBLINE_OLD(old_pow, pow);

int old_pthread_create(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
int old_pthread_join(pthread_t, void**);
int old_pthread_once(pthread_once_t*, void (*)());
int old_fxstat64(int version, int file, struct stat64* status);
double old_exp(double);
double old_pow(double, double);

// Whether a process has one thread, which a newer glibc tells: always counting with atomics is right too.
char __libc_single_threaded = 0;

int __wrap_pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*start)(void*), void* argument) {
  return old_pthread_create(thread, attributes, start, argument);
}

int __wrap_pthread_join(pthread_t thread, void** result) { return old_pthread_join(thread, result); }

int __wrap_pthread_once(pthread_once_t* control, void (*routine)()) { return old_pthread_once(control, routine); }

int __wrap_fstat64(int file, struct stat64* status) { return old_fxstat64(kStatVersion, file, status); }

double __wrap_exp(double exponent) { return old_exp(exponent); }

double __wrap_pow(double base, double exponent) { return old_pow(base, exponent); }
}

#endif
