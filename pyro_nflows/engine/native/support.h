/* What generated loops call: elementary functions that a compiler can vectorise, and products of matrices.

   Every function is free of branches, so that a loop around it becomes vector code with any compiler. NaN and
   infinities come out as they do from libm. Errors are below 2 units in the last place, but for tanh (3). */
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef int64_t i64;
typedef int32_t i32;
typedef uint8_t u8;

#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
/* As torch has it: NaN stays NaN. */
#define TMAX(a, b) ((a) > (b) || (a) != (a) ? (a) : (b))
#define TMIN(a, b) ((a) < (b) || (a) != (a) ? (a) : (b))
#define SIGN(a) (((a) > 0) - ((a) < 0))

static inline float f_of(i32 i) { union { i32 i; float f; } u; u.i = i; return u.f; }
static inline i32 f_bits(float f) { union { i32 i; float f; } u; u.f = f; return u.i; }
static inline double d_of(i64 i) { union { i64 i; double f; } u; u.i = i; return u.f; }
static inline i64 d_bits(double f) { union { i64 i; double f; } u; u.f = f; return u.i; }

/* Adding 1.5 2^(mantissa bits) rounds to an integer and leaves it in the low bits. */
#define F_ROUND 12582912.0f
#define D_ROUND 6755399441055744.0
static inline float f_pow2(float n) { return f_of((i32)((uint32_t)f_bits(n + 127.0f + F_ROUND) << 23)); }
static inline double d_pow2(double n) { return d_of((i64)((uint64_t)d_bits(n + 1023.0 + D_ROUND) << 52)); }

/* e^r - 1 for |r| <= ln(2) / 2, by its Taylor series. */
static inline float f_expm1_near(float r) {
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  return p * r * r + r;
}
static inline double d_expm1_near(double r) {
  double p = 1.0 / 6227020800;
  p = p * r + 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  return p * r * r + r;
}

/* log(m) for 1/sqrt(2) <= m < sqrt(2): in single precision f - f^2/2 + f^3 Q(f), f = m - 1, with Q interpolated at
   Chebyshev points; in double the series of atanh(s), s = (m - 1) / (m + 1). */
static inline float f_log_near(float m) {
  float f = m - 1, q = -0.0790274377f;
  q = q * f + 0.126223198f;
  q = q * f - 0.129981838f;
  q = q * f + 0.142144959f;
  q = q * f - 0.166412815f;
  q = q * f + 0.200010451f;
  q = q * f - 0.250003064f;
  q = q * f + 0.333333307f;
  return f + f * f * (q * f - 0.5f);
}
static inline double d_log_near(double m) {
  double s = (m - 1) / (m + 1), z = s * s;
  double p = 2.0 / 21;
  p = p * z + 2.0 / 19;
  p = p * z + 2.0 / 17;
  p = p * z + 2.0 / 15;
  p = p * z + 2.0 / 13;
  p = p * z + 2.0 / 11;
  p = p * z + 2.0 / 9;
  p = p * z + 2.0 / 7;
  p = p * z + 2.0 / 5;
  p = p * z + 2.0 / 3;
  return 2 * s + s * z * p;
}

/* x = n ln(2) + r; c is x kept where 2^n makes sense. ln(2) comes in two parts, the first with few digits. */
#define SPLIT(T, LOW, HIGH, ROUND, LN2A, LN2B)                                    \
  T c = x > HIGH ? HIGH : x;                                                      \
  c = c < LOW ? LOW : c;                                                          \
  T n = (c * (T)1.4426950408889634 + ROUND) - ROUND;                              \
  T r = (c - n * LN2A) - n * LN2B;

#define ELEMENTARY(T, P, LOW, HIGH, ROUND, LN2A, LN2B, TINY, FLAT)                \
  static inline T P##exp(T x) {                                                   \
    SPLIT(T, LOW, HIGH, ROUND, LN2A, LN2B)                                        \
    T p = P##_expm1_near(r) + 1;                                                  \
    return (p + p) * P##_pow2(n - 1); /* zero below the least normal number */    \
  }                                                                               \
  static inline T P##expm1(T x) {                                                 \
    SPLIT(T, LOW, HIGH, ROUND, LN2A, LN2B)                                        \
    T s = P##_pow2(n - 1);                                                        \
    return 2 * (s * P##_expm1_near(r) + (s - (T)0.5));                            \
  }                                                                               \
  static inline T P##tanh(T x) {                                                  \
    T a = x < 0 ? -x : x, c = 2 * (a > FLAT ? FLAT : a);                          \
    T n = (c * (T)1.4426950408889634 + ROUND) - ROUND, s = P##_pow2(n);           \
    T e = s * P##_expm1_near((c - n * LN2A) - n * LN2B) + (s - 1);                \
    T y = e / (e + 2);                                                            \
    return x < 0 ? -y : y;                                                        \
  }                                                                               \
  static inline T P##sigmoid(T x) { return 1 / (1 + P##exp(-x)); }                \
  static inline T P##log(T x) {                                                   \
    T big = x < TINY ? x * (1 / TINY) * 2 : x;                                    \
    T k = P##_exponent(big);                                                      \
    T y = P##_log_near(P##_mantissa(big));                                        \
    k = x < TINY ? k + P##_exponent(TINY) - 1 : k;                                \
    y = k * LN2A + (y + k * LN2B);                                                \
    y = x > 0 ? y : (x == 0 ? -(T)INFINITY : (T)NAN);                             \
    return x == (T)INFINITY ? x : y;                                              \
  }                                                                               \
  static inline T P##log1p(T x) {                                                 \
    T u = 1 + x, y = P##log(u);                                                   \
    T better = y + (x - (u - 1)) / u;                                             \
    return u > 0 && u < (T)INFINITY ? better : y;                                 \
  }                                                                               \
  static inline T P##softplus(T x, T beta, T threshold) {                         \
    T s = x * beta;                                                               \
    return s > threshold ? x : P##log1p(P##exp(s)) / beta;                        \
  }                                                                               \
  static inline T P##digamma(T x) {                                               \
    double y = 0, z = x, w;                                                       \
    if (z <= 0) {                                                                 \
      if (z == floor(z)) return z == 0 ? (T)copysign(INFINITY, -z) : (T)NAN;      \
      y = -M_PI / tan(M_PI * z);                                                  \
      z = 1 - z;                                                                  \
    }                                                                             \
    while (z < 10) { y -= 1 / z; z += 1; }                                        \
    w = 1 / (z * z);                                                              \
    w *= 1.0 / 12 - w * (1.0 / 120 - w * (1.0 / 252 - w * (1.0 / 240 - w * (1.0 / 132 - w * 691 / 32760)))); \
    return (T)(y + log(z) - 0.5 / z - w);                                         \
  }

#define F_HALF 0x3f3504f3 /* the bits of sqrt(1/2) */
#define D_HALF 0x3fe6a09e667f3bcdLL
static inline float f_exponent(float x) { return (float)((f_bits(x) - F_HALF) >> 23); }
static inline float f_mantissa(float x) { return f_of(((f_bits(x) - F_HALF) & 0x7fffff) + F_HALF); }
static inline double d_exponent(double x) {
  /* positive before the shift, since vector units shift 64 bits without a sign only */
  i64 k = (i64)((uint64_t)(d_bits(x) - D_HALF + (1024LL << 52)) >> 52);
  return d_of(k + d_bits(D_ROUND)) - (D_ROUND + 1024.0);
}
static inline double d_mantissa(double x) { return d_of(((d_bits(x) - D_HALF) & 0xfffffffffffffLL) + D_HALF); }

ELEMENTARY(float, f, -87.6f, 88.8f, F_ROUND, 0.693359375f, -2.12194440e-4f, 1.17549435e-38f, 10.0f)
ELEMENTARY(double, d, -708.7, 709.9, D_ROUND, 6.93147180369123816490e-01, 1.90821492927058770002e-10,
           2.2250738585072014e-308, 20.0)

/* a^b as libm has it: in single precision b log(a) is known in double, and only what is left of it after whole powers of
   two is rounded. Zero below the least normal number. */
static inline float f_exp_of(double x) {
  double c = x > 88.8 ? 88.8 : x;
  c = c < -87.6 ? -87.6 : c;
  double n = (c * 1.4426950408889634 + D_ROUND) - D_ROUND;
  float p = f_expm1_near((float)((c - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10)) + 1;
  return (p + p) * f_pow2((float)n - 1);
}
static inline float fpow(float a, float b) {
  float size = a < 0 ? -a : a, whole = floorf(b), half = floorf(b * 0.5f);
  float y = b == 0 || size == 1 ? 1 : f_exp_of(b * dlog((double)size));
  float other = size < INFINITY ? (float)NAN : y; /* a root of a negative number */
  float turned = whole != b ? other : (whole == 2 * half ? y : -y);
  return a < 0 ? turned : y;
}
#define POWER(T, a, b) _Generic((T)0, float: fpow, default: pow)(a, b)

/* Products of matrices and triangles are compiled once, in linear.c; a program is handed where they are. */
#define LINEAR(T, P)                                                                                              \
  typedef void P##product_t(i64 m, i64 n, i64 k, const T *a, i64 ai, i64 ak, const T *b, i64 bk, i64 bj, T *c,    \
                            i64 ci, i64 cj, T *pack, int more);                                                             \
  typedef void P##solve_t(i64 n, i64 m, const T *a, i64 ai, i64 aj, const T *b, i64 bi, i64 bj, T *x, i64 xi,     \
                          i64 xj, int upper, int unit);                                                           \
  typedef void P##cholesky_t(i64 n, const T *a, i64 ai, i64 aj, T *l, i64 li, i64 lj, i32 *info);

LINEAR(float, f)
LINEAR(double, d)

/* What threads that share a step are given, and how: part i of n of its work (team.c); each has memory of its own. */
typedef struct { u8 *memory, **constants, *own; } given_t;
typedef void part_t(const given_t *given, i64 part, i64 parts);
typedef struct team team_t;
typedef void share_t(team_t *team, part_t *work, const given_t *given);
#define SHARE(work) do { if (team) share(team, work, &given); else work(&given, 0, 1); } while (0)
/* Where part i of n begins: at a multiple of 16, so that no part is short. */
#define CUT(size, i, n) ((i) == (n) ? (size) : (size) / 16 * (i) / (n) * 16)

/* Runs of numbers are rows of a beginning, an end, and how many come before. Part i of n of what is in them; `next` is
   where the run after this one begins, whose first numbers are to be fetched AHEAD. */
#define RUNS(runs, num, i, n, ahead, call)                                                                        \
  for (i64 r = 0, all = runs[3 * num - 1] + runs[3 * num - 2] - runs[3 * num - 3]; r < num; r++) {                \
    const i64 *run = runs + 3 * r, lo = MAX(run[0], run[0] + CUT(all, i, n) - run[2]),                            \
              hi = MIN(run[1], run[0] + CUT(all, i + 1, n) - run[2]), next = r + 1 < num ? run[3] : hi;           \
    if (lo >= hi) continue;                                                                                       \
    ahead                                                                                                         \
    call;                                                                                                         \
  }
#if defined(__GNUC__)
#define AHEAD(x) for (i64 i = 0; i < 256; i += 64) __builtin_prefetch((const u8 *)(x + next) + i);
#else
#define AHEAD(x)
#endif
/* Whether there is anything but zeros beside them. */
#define BESIDE(T, P)                                                                                              \
  static inline int P##beside(const T *x, i64 size, const i64 *runs, i64 num) {                                   \
    int found = 0;                                                                                                \
    for (i64 r = 0; r <= num; r++)                                                                                \
      for (i64 i = r ? runs[3 * r - 2] : 0, end = r < num ? runs[3 * r] : size; i < end; i++) found |= x[i] != 0; \
    return found;                                                                                                 \
  }
BESIDE(float, f)
BESIDE(double, d)
