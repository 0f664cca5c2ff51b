// Eight lanes of float or double in the compiler's own vector extension: AVX2, SSE2 and NEON come from one text.
// Everything is in an unnamed namespace: this file is compiled for several instruction sets, and a function shared by
// name could be linked in its AVX2 form on a machine without it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

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
PYRL_INLINE Vec<float> load8(const BFloat16* p) {
  return (Vec<float>)(__builtin_convertvector(load_bits<VecU16>(p), VecU32) << 16);
}
// fp16 -> fp32: the bits, moved into place, times 2^112 (exact, subnormals too); inf and NaN get their exponent back.
PYRL_INLINE Vec<float> load8(const Half* p) {
  const VecU32 h = __builtin_convertvector(load_bits<VecU16>(p), VecU32);
  const VecU32 magnitude = h & 0x7FFFu;
  const VecU32 scaled = (VecU32)((Vec<float>)(magnitude << 13) * 0x1p112f);
  const VecU32 special = (VecU32)((VecI32)magnitude >= 0x7C00) & 0x7F800000u;
  return (Vec<float>)(scaled | special | ((h & 0x8000u) << 16));
}

template <typename T>
PYRL_INLINE void store8(T* p, Vec<T> v) {
  std::memcpy(p, &v, sizeof v);
}
PYRL_INLINE void store8_u16(void* p, VecU32 bits) {
  const VecU16 narrow = __builtin_convertvector(bits, VecU16);
  std::memcpy(p, &narrow, sizeof narrow);
}
// Round to nearest even; NaN stays NaN.
PYRL_INLINE void store8(BFloat16* p, Vec<float> v) {
  const VecU32 bits = (VecU32)v;
  const VecU32 rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const VecU32 nan = (VecU32)(v != v);
  store8_u16(p, (nan & 0x7FC0u) | (~nan & rounded));
}
// Round to nearest even (the addition of a magic number rounds subnormals); above 65504 gives inf; NaN stays NaN.
PYRL_INLINE void store8(Half* p, Vec<float> v) {
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
  store8_u16(p, half | sign);
}

// One element through the vector forms, so that there is one conversion of each kind.
template <typename E>
PYRL_INLINE Compute<E> load1(const E* p) {
  E lanes[kLanes] = {};
  lanes[0] = *p;
  return load8(lanes)[0];
}
template <typename E>
PYRL_INLINE void store1(E* p, Compute<E> x) {
  E lanes[kLanes];
  store8(lanes, splat<Compute<E>>(x));
  *p = lanes[0];
}

template <typename V>
PYRL_INLINE V max8(V a, V b) {
  return a > b ? a : b;
}

// Below this e^x is taken as 0: its float is subnormal.
PYRL_INLINE float exp_cutoff(float) { return -87.3f; }
PYRL_INLINE double exp_cutoff(double) { return -708.0; }

// e^x for x <= 0 (up to rounding) and x >= the cutoff, within 1.5 ulp; e^0 = 1; NaN gives NaN.
// x = n ln 2 + r, |r| <= ln 2 / 2, and Cephes' expf polynomial in r.
PYRL_INLINE Vec<float> exp8(Vec<float> x) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: its addition rounds to an integer, held in the low bits
  const Vec<float> shifted = x * 1.44269504088896341f + magic;
  const Vec<float> n = shifted - magic;
  Vec<float> r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  Vec<float> poly = r * 1.9875691500e-4f + 1.3981999507e-3f;
  poly = poly * r + 8.3334519073e-3f;
  poly = poly * r + 4.1665795894e-2f;
  poly = poly * r + 1.6666665459e-1f;
  poly = poly * r + 5.0000001201e-1f;
  const Vec<float> mantissa = poly * (r * r) + r + 1.0f;
  const VecI32 exponent = ((VecI32)shifted - 0x4B400000 + 127) << 23;
  return mantissa * (Vec<float>)exponent;
}
PYRL_INLINE Vec<double> exp8(Vec<double> x) {
  Vec<double> y;
  for (int i = 0; i < kLanes; ++i) y[i] = std::exp(x[i]);
  return y;
}

template <typename V>
PYRL_INLINE double sum8(V v) {
  double total = 0;
  for (int i = 0; i < kLanes; ++i) total += static_cast<double>(v[i]);
  return total;
}

}  // namespace
