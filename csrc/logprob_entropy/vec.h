// Eight lanes of float or double in the compiler's own vector extension: AVX2, SSE2 and NEON come from one text.
// Everything is in an unnamed namespace: this file is compiled for several instruction sets, and a function shared by
// name could be linked in its AVX2 form on a machine without it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#ifdef __AVX__
#include <immintrin.h>
#endif

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed between inlined functions only

namespace {

inline constexpr int kLanes = 8;
#define PYRL_INLINE inline __attribute__((always_inline))

template <typename T>
struct VecOf;
template <>
struct VecOf<float> {
  typedef float type __attribute__((vector_size(32)));
};
template <>
struct VecOf<double> {
  typedef double type __attribute__((vector_size(64)));
};
template <typename T>
using Vec = typename VecOf<T>::type;
typedef int32_t VecI32 __attribute__((vector_size(32)));
typedef uint32_t VecU32 __attribute__((vector_size(32)));
typedef uint16_t VecU16 __attribute__((vector_size(16)));

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// The type in which an element type is computed.
template <typename E>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <typename E>
using Compute = typename ComputeOf<E>::type;

// Sixteen elements. Those of 16 bits are taken apart two by two, which is one instruction each where widening in order
// takes four: `a` holds the even ones and `b` the odd ones. Otherwise `a` holds the first eight.
template <typename C>
struct Pair {
  Vec<C> a, b;
};
inline constexpr int kPair = 2 * kLanes;

template <typename T>
PYRL_INLINE Vec<T> splat(T x) {
  return Vec<T>{} + x;
}

template <typename V, typename P>
PYRL_INLINE V load_bits(const P* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

PYRL_INLINE Vec<float> load8(const float* p) { return load_bits<Vec<float>>(p); }
PYRL_INLINE Vec<double> load8(const double* p) { return load_bits<Vec<double>>(p); }

// fp16 in the low bits -> fp32: the bits, moved into place, times 2^112 (exact, subnormals too); inf and NaN get their
// exponent back.
PYRL_INLINE Vec<float> widened(VecU32 h) {
  const VecU32 magnitude = h & 0x7FFFu;
  const VecU32 scaled = (VecU32)((Vec<float>)(magnitude << 13) * 0x1p112f);
  const VecU32 special = (VecU32)((VecI32)magnitude >= 0x7C00) & 0x7F800000u;
  return (Vec<float>)(scaled | special | ((h & 0x8000u) << 16));
}

template <typename T>
PYRL_INLINE Pair<T> load16(const T* p) {
  return {load8(p), load8(p + kLanes)};
}
PYRL_INLINE Pair<float> load16(const BFloat16* p) {
  const VecU32 two = load_bits<VecU32>(p);
  return {(Vec<float>)(two << 16), (Vec<float>)(two & 0xFFFF0000u)};
}
PYRL_INLINE Pair<float> load16(const Half* p) {
  const VecU32 two = load_bits<VecU32>(p);
  return {widened(two & 0xFFFFu), widened(two >> 16)};
}

template <typename T>
PYRL_INLINE void store8(T* p, Vec<T> v) {
  std::memcpy(p, &v, sizeof v);
}

// The bits of a bf16 in the low half; round to nearest even; NaN stays NaN.
PYRL_INLINE VecU32 narrowed(const BFloat16*, Vec<float> v) {
  const VecU32 bits = (VecU32)v;
  const VecU32 rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const VecU32 nan = (VecU32)(v != v);
  return (nan & 0x7FC0u) | (~nan & rounded);
}
// Of an fp16. Round to nearest even (the addition of a magic number rounds subnormals); above 65504 gives inf; NaN stays
// NaN.
PYRL_INLINE VecU32 narrowed(const Half*, Vec<float> v) {
  const VecU32 bits = (VecU32)v;
  const VecU32 sign = (bits >> 16) & 0x8000u;
  const VecU32 magnitude = bits & 0x7FFFFFFFu;
  const VecU32 normal = (magnitude + 0xC8000FFFu + ((magnitude >> 13) & 1u)) >> 13;  // exponent bias 127 -> 15
  const VecU32 subnormal = (VecU32)((Vec<float>)magnitude + 0.5f) - 0x3F000000u;
  const VecU32 is_small = (VecU32)((VecI32)magnitude < 0x38800000);  // 2^-14
  const VecU32 is_large = (VecU32)((VecI32)magnitude >= 0x477FF000);  // 65520, which rounds up to inf
  const VecU32 is_nan = (VecU32)((VecI32)magnitude > 0x7F800000);
  VecU32 half = (is_small & subnormal) | (~is_small & normal);
  half = (is_large & 0x7C00u) | (~is_large & half);
  half = (is_nan & 0x7E00u) | (~is_nan & half);
  return half | sign;
}

// What load16(const E*) took apart, to O.
template <typename E, typename O>
PYRL_INLINE void store16(O* p, const Pair<Compute<E>>& v) {
  if constexpr (sizeof(O) > 2) {
    store8(p, v.a);
    store8(p + kLanes, v.b);
  } else if constexpr (sizeof(E) == 2) {
    const VecU32 two = narrowed(p, v.a) | (narrowed(p, v.b) << 16);
    std::memcpy(static_cast<void*>(p), &two, sizeof two);
  } else {
    const VecU16 narrow[2] = {
        __builtin_convertvector(narrowed(p, v.a), VecU16), __builtin_convertvector(narrowed(p, v.b), VecU16)};
    std::memcpy(static_cast<void*>(p), narrow, sizeof narrow);
  }
}

// One element through the vector forms, so that there is one conversion of each kind.
template <typename E>
PYRL_INLINE Compute<E> load1(const E* p) {
  E elements[kPair] = {};
  elements[0] = *p;
  return load16(elements).a[0];
}
template <typename E>
PYRL_INLINE void store1(E* p, Compute<E> x) {
  E elements[kPair];
  store16<E>(elements, {splat<Compute<E>>(x), splat<Compute<E>>(x)});
  *p = elements[0];
}

template <typename E>
PYRL_INLINE E minus_infinity() {
  E x;
  store1(&x, -std::numeric_limits<Compute<E>>::infinity());
  return x;
}

// The larger of both; b where either is NaN (as maxps has it).
template <typename V>
PYRL_INLINE V max8(V a, V b) {
  return a > b ? a : b;
}
#ifdef __AVX__  // of the form above gcc 12 makes two instructions
PYRL_INLINE Vec<float> max8(Vec<float> a, Vec<float> b) { return _mm256_max_ps(a, b); }
#endif

// Exponentials are powers of two: the factor log2 e goes into one that is there anyway (the temperature), and the power
// takes a third fewer instructions than e^x. exp2_8 of the cutoff is 0: what is smaller is raised to it.
inline constexpr double kLog2E = 1.4426950408889634;
inline constexpr double kLn2 = 0.6931471805599453;
PYRL_INLINE float exp2_cutoff(float) { return -127.0f; }
PYRL_INLINE double exp2_cutoff(double) { return -1080.0; }

// 2^x for x from the cutoff to 126, within 1.5 ulp; below 2^-126.5 it is 0; 2^0 = 1; NaN gives NaN.
// x = n + f, |f| <= 1/2, and a polynomial of degree 6 in f, relative error 1e-8 before rounding.
PYRL_INLINE Vec<float> exp2_8(Vec<float> x) {
  const float magic = 12582912.0f + 127.0f;  // 1.5 * 2^23: its addition rounds to an integer, held in the low bits
  const Vec<float> shifted = x + magic;
  const Vec<float> f = x - (shifted - magic);
  Vec<float> power = f * 1.546144777e-04f + 1.339086681e-03f;
  power = power * f + 9.618056938e-03f;
  power = power * f + 5.550356954e-02f;
  power = power * f + 2.402265072e-01f;
  power = power * f + 6.931471825e-01f;
  power = power * f + 1.0f;
  return power * (Vec<float>)((VecI32)shifted << 23);  // n + 127, the exponent of 2^n; all 0 for n = -127
}
PYRL_INLINE Vec<double> exp2_8(Vec<double> x) {
  Vec<double> y;
  for (int i = 0; i < kLanes; ++i) y[i] = std::exp2(x[i]);
  return y;
}

template <typename V>
PYRL_INLINE double sum8(V v) {
  double total = 0;
  for (int i = 0; i < kLanes; ++i) total += static_cast<double>(v[i]);
  return total;
}

}  // namespace
