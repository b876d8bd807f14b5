/* Small products of matrices, and triangles: shapes of a flow's networks, for which a library's overhead is too much. */
#include "support.h"

#include <stdlib.h>

#if defined(__AVX512F__)
#define VECTOR 64
#elif defined(__AVX__)
#define VECTOR 32
#else
#define VECTOR 16
#endif

/* Columns of B are packed where that is repaid: where they lie apart, for FEW rows of A or more; where they lie side by
   side, for MANY, if all of them take more memory than a processor has at hand. */
#define FEW 12
#define MANY 64
#define SPREAD 32768
/* The transposed product packs the rows of A instead, which are fewer, and stores numbers that lie apart: repaid where
   those are not more than what is summed up; if columns of B lie side by side, for so many COLUMNS or more where A needs
   no packing, or where B is SPREAD. */
#define COLUMNS 128

/* The transposed product: B' A' is (A B)'. */
#define TURN                                                                                                           \
  {                                                                                                                    \
    const void *t = a; a = b; b = t;                                                                                   \
    i64 s = ai; ai = bj; bj = s;                                                                                       \
    s = ak; ak = bk; bk = s;                                                                                           \
    s = ci; ci = cj; cj = s;                                                                                           \
    s = m; m = n; n = s;                                                                                               \
  }

/* Numbers at `places` of two vectors of `num`. */
#if defined(__GNUC__) && !defined(__clang__)
#define SHUFFLE(out, x, y, places, num) out = __builtin_shuffle(x, y, places)
#else
#define SHUFFLE(out, x, y, places, num)                                                                                \
  for (int to = 0; to < num; to++) (out)[to] = places[to] < num ? x[places[to]] : y[places[to] - num]
#endif

/* C (m x n) = A (m x k) B (k x n), or C + A B if there is `more`, whatever the strides; `pack` holds k x (n rounded up)
   numbers. */
#define PRODUCT(T, P)                                                                                                  \
  typedef T P##vector __attribute__((vector_size(VECTOR), aligned(sizeof(T)), may_alias));                             \
  typedef __typeof__((P##vector){0} < (P##vector){0}) P##places;                                                       \
  enum { P##wide = 2 * VECTOR / sizeof(T) };                                                                           \
  static inline __attribute__((always_inline)) void P##rows(int rows, i64 k, const T *a, i64 ai, i64 ak,               \
                                                            const T *b, i64 bk, T *c, i64 ci, i64 width, int more) {   \
    P##vector sum[6][2];                                                                                               \
    memset(sum, 0, sizeof(P##vector) * 2 * rows);                                                                      \
    for (i64 l = 0; l < k; l++, a += ak, b += bk) {                                                                    \
      P##vector b0 = *(const P##vector *)b, b1 = *(const P##vector *)(b + P##wide / 2);                                \
      _Pragma("GCC unroll 6") for (int r = 0; r < rows; r++) {                                                         \
        T x = a[r * ai];                                                                                               \
        sum[r][0] += x * b0;                                                                                           \
        sum[r][1] += x * b1;                                                                                           \
      }                                                                                                                \
    }                                                                                                                  \
    _Pragma("GCC unroll 6") for (int r = 0; r < rows; r++) {                                                           \
      if (more) {                                                                                                      \
        T kept[P##wide];                                                                                               \
        memcpy(kept, sum[r], sizeof kept);                                                                             \
        for (i64 j = 0; j < width; j++) c[r * ci + j] += kept[j];                                                      \
      } else if (width == P##wide) {                                                                                   \
        *(P##vector *)(c + r * ci) = sum[r][0];                                                                        \
        *(P##vector *)(c + r * ci + P##wide / 2) = sum[r][1];                                                          \
      } else {                                                                                                         \
        memcpy(c + r * ci, sum[r], width * sizeof(T));                                                                 \
      }                                                                                                                \
    }                                                                                                                  \
  }                                                                                                                    \
  static __attribute__((noinline)) void P##panel(i64 m, i64 k, const T *a, i64 ai, i64 ak, const T *b, i64 bk,         \
                                                 T *c, i64 ci, i64 width, int more) {                                  \
    i64 i = 0;                                                                                                         \
    for (; i + 6 <= m; i += 6) P##rows(6, k, a + i * ai, ai, ak, b, bk, c + i * ci, ci, width, more);                  \
    a += i * ai, c += i * ci;                                                                                          \
    switch (m - i) {                                                                                                   \
      case 5: P##rows(5, k, a, ai, ak, b, bk, c, ci, width, more); break;                                              \
      case 4: P##rows(4, k, a, ai, ak, b, bk, c, ci, width, more); break;                                              \
      case 3: P##rows(3, k, a, ai, ak, b, bk, c, ci, width, more); break;                                              \
      case 2: P##rows(2, k, a, ai, ak, b, bk, c, ci, width, more); break;                                              \
      case 1: P##rows(1, k, a, ai, ak, b, bk, c, ci, width, more); break;                                              \
    }                                                                                                                  \
  }                                                                                                                    \
  /* Vectors are the rows of a square: to columns. Halves are exchanged, then quarters, and so on. */                  \
  static inline __attribute__((always_inline)) void P##square(P##vector *row) {                                        \
    _Pragma("GCC unroll 4") for (int d = P##wide / 4; d > 0; d /= 2) {                                                 \
      P##places low, high;                                                                                             \
      for (int j = 0; j < P##wide / 2; j++) {                                                                          \
        low[j] = j & d ? P##wide / 2 + j - d : j;                                                                      \
        high[j] = j & d ? P##wide / 2 + j : j + d;                                                                     \
      }                                                                                                                \
      _Pragma("GCC unroll 16") for (int i = 0; i < P##wide / 2; i++) {                                                 \
        if (i & d) continue;                                                                                           \
        P##vector x = row[i], y = row[i + d];                                                                          \
        SHUFFLE(row[i], x, y, low, P##wide / 2);                                                                       \
        SHUFFLE(row[i + d], x, y, high, P##wide / 2);                                                                  \
      }                                                                                                                \
    }                                                                                                                  \
  }                                                                                                                    \
  /* k rows of `wide` numbers: columns of B, and zeros. */                                                             \
  static void P##pack(i64 width, i64 k, const T *b, i64 bk, i64 bj, T *to) {                                           \
    enum { num = P##wide / 2 };                                                                                        \
    if (bj == 1 && width == P##wide) {                                                                                 \
      for (i64 l = 0; l < k; l++) memcpy(to + l * P##wide, b + l * bk, sizeof(T) * P##wide);                           \
      return;                                                                                                          \
    }                                                                                                                  \
    for (i64 q = 0; q < P##wide; q += num) {                                                                           \
      i64 l = 0;                                                                                                       \
      for (; bk == 1 && q + num <= width && l + num <= k; l += num) {                                                  \
        P##vector row[num];                                                                                            \
        for (int i = 0; i < num; i++) row[i] = *(const P##vector *)(b + (q + i) * bj + l);                             \
        P##square(row);                                                                                                \
        for (int i = 0; i < num; i++) *(P##vector *)(to + (l + i) * P##wide + q) = row[i];                             \
      }                                                                                                                \
      for (; l < k; l++)                                                                                               \
        for (i64 r = q; r < q + num; r++) to[l * P##wide + r] = r < width ? b[l * bk + r * bj] : 0;                    \
    }                                                                                                                  \
  }                                                                                                                    \
  /* A panel whose columns lie apart: put together in `kept`, and then to where they are. */                           \
  static void P##apart(i64 m, i64 k, const T *a, i64 ai, i64 ak, const T *b, i64 bk, T *c, i64 ci, i64 cj,             \
                       i64 width, int more) {                                                                          \
    enum { num = P##wide / 2, most = 48 };                                                                             \
    T kept[most * P##wide];                                                                                            \
    for (i64 i = 0; i < m; i += most, c += most * ci) {                                                                \
      i64 rows = MIN(most, m - i);                                                                                     \
      P##panel(rows, k, a + i * ai, ai, ak, b, bk, kept, P##wide, P##wide, 0);                                         \
      for (i64 q = 0; q < width; q += num) {                                                                           \
        i64 r = 0;                                                                                                     \
        for (; ci == 1 && q + num <= width && r + num <= rows; r += num) {                                             \
          P##vector row[num];                                                                                          \
          for (int j = 0; j < num; j++) row[j] = *(const P##vector *)(kept + (r + j) * P##wide + q);                   \
          P##square(row);                                                                                              \
          for (int j = 0; j < num; j++) {                                                                              \
            P##vector *to = (P##vector *)(c + (q + j) * cj + r);                                                       \
            if (more) row[j] += *to;                                                                                   \
            *to = row[j];                                                                                              \
          }                                                                                                            \
        }                                                                                                              \
        for (; r < rows; r++)                                                                                          \
          for (i64 j = q; j < MIN(q + num, width); j++) {                                                              \
            T s = kept[r * P##wide + j];                                                                               \
            c[r * ci + j * cj] = more ? c[r * ci + j * cj] + s : s;                                                    \
          }                                                                                                            \
      }                                                                                                                \
    }                                                                                                                  \
  }                                                                                                                    \
  static inline __attribute__((always_inline)) void P##block(int rows, int cols, i64 k, const T *a, i64 ai,            \
                                                             const T *b, i64 bj, T *c, i64 ci, i64 cj, int more) {     \
    P##vector sum[4][3];                                                                                               \
    i64 l = 0;                                                                                                         \
    memset(sum, 0, sizeof sum);                                                                                        \
    for (; l + P##wide / 2 <= k; l += P##wide / 2) {                                                                   \
      P##vector y[3];                                                                                                  \
      _Pragma("GCC unroll 3") for (int q = 0; q < cols; q++) y[q] = *(const P##vector *)(b + q * bj + l);              \
      _Pragma("GCC unroll 4") for (int r = 0; r < rows; r++) {                                                         \
        P##vector x = *(const P##vector *)(a + r * ai + l);                                                            \
        _Pragma("GCC unroll 3") for (int q = 0; q < cols; q++) sum[r][q] += x * y[q];                                  \
      }                                                                                                                \
    }                                                                                                                  \
    _Pragma("GCC unroll 4") for (int r = 0; r < rows; r++) {                                                           \
      _Pragma("GCC unroll 3") for (int q = 0; q < cols; q++) {                                                         \
        T s = 0;                                                                                                       \
        for (int v = 0; v < P##wide / 2; v++) s += sum[r][q][v];                                                       \
        for (i64 t = l; t < k; t++) s += a[r * ai + t] * b[q * bj + t];                                                \
        c[r * ci + q * cj] = more ? c[r * ci + q * cj] + s : s;                                                        \
      }                                                                                                                \
    }                                                                                                                  \
  }                                                                                                                    \
  static __attribute__((noinline)) void P##inner(i64 m, i64 n, i64 k, const T *a, i64 ai, const T *b, i64 bj,          \
                                                 T *c, i64 ci, i64 cj, int more) {                                     \
    for (i64 i = 0; i < m; i += 4)                                                                                     \
      for (i64 j = 0; j < n; j += 3) {                                                                                 \
        if (m - i >= 4 && n - j >= 3) {                                                                                \
          P##block(4, 3, k, a + i * ai, ai, b + j * bj, bj, c + i * ci + j * cj, ci, cj, more);                        \
        } else {                                                                                                       \
          for (i64 r = i; r < MIN(i + 4, m); r++)                                                                      \
            for (i64 q = j; q < MIN(j + 3, n); q++)                                                                    \
              P##block(1, 1, k, a + r * ai, ai, b + q * bj, bj, c + r * ci + q * cj, ci, cj, more);                    \
        }                                                                                                              \
      }                                                                                                                \
  }                                                                                                                    \
  void P##product(i64 m, i64 n, i64 k, const T *a, i64 ai, i64 ak, const T *b,                                         \
                                                   i64 bk, i64 bj, T *c, i64 ci, i64 cj, T *pack, int more) {          \
    if (cj != 1 || (n == 1 && m > 1)) TURN                                                                             \
    if (m < FEW && ak == 1 && bk == 1 && bj != 1 && k >= P##wide)                                                      \
      return P##inner(m, n, k, a, ai, b, bj, c, ci, cj, more);                                                         \
    if (m < 4 && bk == 1 && bj != 1) { /* inner products: packing would cost more than it saves */                     \
      for (i64 i = 0; i < m; i++)                                                                                      \
        for (i64 j = 0; j < n; j++) {                                                                                  \
          T sum = 0;                                                                                                   \
          _Pragma("omp simd reduction(+ : sum)") for (i64 l = 0; l < k; l++) sum += a[i * ai + l * ak] * b[l + j * bj];\
          c[i * ci + j * cj] = more ? c[i * ci + j * cj] + sum : sum;                                                  \
        }                                                                                                              \
      return;                                                                                                          \
    }                                                                                                                  \
    int apart = bj != 1 || (n >= COLUMNS && (ai == 1 || (m < MANY && k * bk >= SPREAD)));                              \
    if (n > m && m >= FEW && k >= m && apart) TURN                                                                     \
    for (i64 j = 0; j < n; j += P##wide) {                                                                             \
      i64 width = MIN(P##wide, n - j);                                                                                 \
      const T *p = b + j * bj;                                                                                         \
      i64 step = bk;                                                                                                   \
      if (bj != 1 || width < P##wide || (m >= MANY && k * bk >= SPREAD)) {                                             \
        P##pack(width, k, p, bk, bj, pack);                                                                            \
        p = pack, step = P##wide;                                                                                      \
      }                                                                                                                \
      if (cj == 1)                                                                                                     \
        P##panel(m, k, a, ai, ak, p, step, c + j, ci, width, more);                                                    \
      else                                                                                                             \
        P##apart(m, k, a, ai, ak, p, step, c + j * cj, ci, cj, width, more);                                           \
    }                                                                                                                  \
  }

/* Triangles below this many rows are done number by number; of up to so many, what they need fits on the stack. */
#define TINY_TRIANGLE 12
#define SMALL_TRIANGLE 64
#define TRIANGLE(T, P)                                                                                                 \
  /* x in A x = b for a lower triangle A; x lies together. */                                                          \
  static void P##substitute(i64 n, const T *a, i64 ai, i64 aj, const T *b, i64 bi, T *x, int unit) {                   \
    for (i64 i = 0; i < n; i++) x[i] = b[i * bi];                                                                      \
    for (i64 i = 0; i < n; i++) {                                                                                      \
      if (ai * ai == 1) { /* column by column */                                                                       \
        T c = unit ? x[i] : x[i] / a[i * (ai + aj)];                                                                   \
        const T *column = a + i * aj;                                                                                  \
        x[i] = c;                                                                                                      \
        if (ai == 1) {                                                                                                 \
          _Pragma("omp simd") for (i64 l = i + 1; l < n; l++) x[l] -= c * column[l];                                   \
        } else {                                                                                                       \
          for (i64 l = i + 1; l < n; l++) x[l] -= c * column[-l];                                                      \
        }                                                                                                              \
      } else {                                                                                                         \
        T sum = 0;                                                                                                     \
        const T *row = a + i * ai;                                                                                     \
        if (aj == 1) {                                                                                                 \
          _Pragma("omp simd reduction(+ : sum)") for (i64 l = 0; l < i; l++) sum += row[l] * x[l];                     \
        } else {                                                                                                       \
          _Pragma("omp simd reduction(+ : sum)") for (i64 l = 0; l < i; l++) sum += row[l * aj] * x[l];                \
        }                                                                                                              \
        x[i] = (x[i] - sum) / (unit ? 1 : row[i * aj]);                                                                \
      }                                                                                                                \
    }                                                                                                                  \
  }                                                                                                                    \
  /* The same for `wide` right sides in the rows of x, six rows at a time; rows before the `first` are zero. */        \
  static void P##triangle(i64 n, const T *a, i64 ai, i64 aj, T *x, i64 first, int unit) {                              \
    T sums[6 * P##wide];                                                                                               \
    for (i64 i = first; i < n; i += 6) {                                                                               \
      i64 rows = MIN(6, n - i);                                                                                        \
      P##panel(rows, i - first, a + i * ai + first * aj, ai, aj, x + first * P##wide, P##wide, sums, P##wide,          \
               P##wide, 0);                                                                                            \
      for (i64 r = 0; r < rows; r++) {                                                                                 \
        T *to = x + (i + r) * P##wide;                                                                                 \
        const T *sum = sums + r * P##wide, *row = a + (i + r) * ai + i * aj;                                           \
        T scale = unit ? 1 : 1 / row[r * aj];                                                                          \
        _Pragma("omp simd") for (int j = 0; j < P##wide; j++) to[j] -= sum[j];                                         \
        for (i64 q = 0; q < r; q++) {                                                                                  \
          const T *from = x + (i + q) * P##wide;                                                                       \
          T c = row[q * aj];                                                                                           \
          _Pragma("omp simd") for (int j = 0; j < P##wide; j++) to[j] -= c * from[j];                                  \
        }                                                                                                              \
        _Pragma("omp simd") for (int j = 0; j < P##wide; j++) to[j] *= scale;                                          \
      }                                                                                                                \
    }                                                                                                                  \
  }                                                                                                                    \
  /* X (n x m) in A X = B for a triangle A. An upper one is a lower one from its end on. */                            \
  void P##solve(i64 n, i64 m, const T *a, i64 ai, i64 aj, const T *b, i64 bi, i64 bj, T *x, i64 xi, i64 xj,            \
                int upper, int unit) {                                                                                 \
    T few[SMALL_TRIANGLE * P##wide], *held = few;                                                                      \
    i64 room = m == 1 ? n : n * P##wide;                                                                               \
    if (upper) {                                                                                                       \
      a += (n - 1) * (ai + aj), b += (n - 1) * bi, x += (n - 1) * xi;                                                  \
      ai = -ai, aj = -aj, bi = -bi, xi = -xi;                                                                          \
    }                                                                                                                  \
    if (room > SMALL_TRIANGLE * P##wide && !(held = malloc(room * sizeof(T)))) {                                       \
      for (i64 i = 0; i < n; i++)                                                                                      \
        for (i64 j = 0; j < m; j++) x[i * xi + j * xj] = (T)NAN;                                                       \
      return;                                                                                                          \
    }                                                                                                                  \
    if (m == 1) {                                                                                                      \
      P##substitute(n, a, ai, aj, b, bi, held, unit);                                                                  \
      for (i64 i = 0; i < n; i++) x[i * xi] = held[i];                                                                 \
    }                                                                                                                  \
    for (i64 j = 0; m > 1 && j < m; j += P##wide) {                                                                    \
      i64 width = MIN(P##wide, m - j), first = n;                                                                      \
      for (i64 i = n - 1; i >= 0; i--) {                                                                               \
        T *to = held + i * P##wide;                                                                                    \
        int some = 0;                                                                                                  \
        for (i64 q = 0; q < P##wide; q++) {                                                                            \
          to[q] = q < width ? b[i * bi + (j + q) * bj] : 0;                                                            \
          some |= to[q] != 0;                                                                                          \
        }                                                                                                              \
        first = some ? i : first;                                                                                      \
      }                                                                                                                \
      P##triangle(n, a, ai, aj, held, first, unit);                                                                    \
      for (i64 i = 0; i < n; i++)                                                                                      \
        for (i64 q = 0; q < width; q++) x[i * xi + (j + q) * xj] = held[i * P##wide + q];                              \
    }                                                                                                                  \
    if (held != few) free(held);                                                                                       \
  }                                                                                                                    \
  static void P##pivot(T s, i64 i, i32 *info) {                                                                        \
    if (!(s > 0) && !*info) *info = (i32)(i + 1);                                                                      \
  }                                                                                                                    \
  static void P##cholesky_tiny(i64 n, const T *a, i64 ai, i64 aj, T *l, i64 li, i64 lj, i32 *info) {                   \
    for (i64 i = 0; i < n; i++)                                                                                        \
      for (i64 j = 0; j < n; j++) {                                                                                    \
        T s = i >= j ? a[i * ai + j * aj] : 0;                                                                         \
        if (i >= j)                                                                                                    \
          for (i64 k = 0; k < j; k++) s -= l[i * li + k * lj] * l[j * li + k * lj];                                    \
        if (i == j) {                                                                                                  \
          P##pivot(s, i, info);                                                                                        \
          s = (T)sqrt(s);                                                                                              \
        } else if (i > j) {                                                                                            \
          s /= l[j * (li + lj)];                                                                                       \
        }                                                                                                              \
        l[i * li + j * lj] = s;                                                                                        \
      }                                                                                                                \
  }                                                                                                                    \
  /* `wide` columns at a time: less what the columns before them explain, then one after the other. */                 \
  void P##cholesky(i64 n, const T *a, i64 ai, i64 aj, T *l, i64 li, i64 lj, i32 *info) {                               \
    T few[2 * SMALL_TRIANGLE * P##wide], *held = few, pivots[P##wide] = {0};                                           \
    *info = 0;                                                                                                         \
    if (n < TINY_TRIANGLE) return P##cholesky_tiny(n, a, ai, aj, l, li, lj, info);                                     \
    if (n > SMALL_TRIANGLE && !(held = malloc(2 * n * P##wide * sizeof(T)))) {                                         \
      *info = 1;                                                                                                       \
      return;                                                                                                          \
    }                                                                                                                  \
    T *before = held + n * P##wide;                                                                                    \
    for (i64 j = 0; j < n; j += P##wide) {                                                                             \
      i64 width = MIN(P##wide, n - j), rows = n - j;                                                                   \
      for (i64 k = 0; k < j; k++)                                                                                      \
        for (i64 c = 0; c < P##wide; c++) before[k * P##wide + c] = c < width ? l[(j + c) * li + k * lj] : 0;          \
      P##panel(rows, j, l + j * li, li, lj, before, P##wide, held, P##wide, P##wide, 0);                               \
      for (i64 i = 0; i < rows; i++) {                                                                                 \
        T *row = held + i * P##wide;                                                                                   \
        for (i64 c = 0; c < width; c++) row[c] = i >= c ? a[(i + j) * ai + (c + j) * aj] - row[c] : 0;                 \
      }                                                                                                                \
      for (i64 c = 0; c < width; c++) {                                                                                \
        T s = held[c * P##wide + c], scale = 1 / (T)sqrt(s);                                                           \
        P##pivot(s, j + c, info);                                                                                      \
        for (i64 q = 0; q <= c; q++) pivots[q] = 0;                                                                    \
        for (i64 q = c + 1; q < width; q++) pivots[q] = held[q * P##wide + c] * scale;                                 \
        held[c * P##wide + c] = (T)sqrt(s);                                                                            \
        for (i64 i = c + 1; i < rows; i++) {                                                                           \
          T *row = held + i * P##wide, factor = row[c] * scale;                                                        \
          _Pragma("omp simd") for (int q = 0; q < P##wide; q++) row[q] -= factor * pivots[q];                          \
          row[c] = factor;                                                                                             \
        }                                                                                                              \
      }                                                                                                                \
      for (i64 i = 0; i < n; i++)                                                                                      \
        for (i64 c = 0; c < width; c++)                                                                                \
          l[i * li + (j + c) * lj] = i >= j + c ? held[(i - j) * P##wide + c] : 0;                                     \
    }                                                                                                                  \
    if (held != few) free(held);                                                                                       \
  }

/* For one type of numbers, which whoever compiles this names, with the prefix of its functions. */
#define ALL(T, P)                                                                                                      \
  PRODUCT(T, P)                                                                                                        \
  TRIANGLE(T, P)
ALL(REAL, PREFIX)
