// The core's kernels on one device against loops in double, over types, sizes and batches.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "anderson.h"
#include "core.h"

namespace invfast::testing {

using Bytes = std::vector<unsigned char>;

inline int failures = 0;

inline void expect(bool good, const std::string& what) {
  if (good) return;
  std::printf("FAILED %s\n", what.c_str());
  ++failures;
}

// A tensor of any type and the exact values it holds.
struct Tensor {
  Bytes bytes;
  std::vector<double> values;
  Type type;
};

inline double half_value(uint16_t bits) {
  const int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
  const double sign = bits & 0x8000 ? -1.0 : 1.0;
  if (exponent == 31) return mantissa ? std::numeric_limits<double>::quiet_NaN() : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24));
}

inline double bfloat_value(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

template <typename T>
void store(Tensor& tensor, size_t i, T value) {
  std::memcpy(tensor.bytes.data() + i * sizeof(T), &value, sizeof(T));
}

inline Tensor draw(Type type, size_t count, std::mt19937& random) {
  std::normal_distribution<double> normal;
  const size_t width = type == Type::f64 ? 8 : type == Type::f32 ? 4 : 2;
  Tensor tensor{Bytes(count * width), std::vector<double>(count), type};
  for (size_t i = 0; i < count; ++i) {
    const double value = normal(random);
    if (type == Type::f64) store(tensor, i, tensor.values[i] = value);
    if (type == Type::f32) store(tensor, i, static_cast<float>(tensor.values[i] = static_cast<float>(value)));
    if (type == Type::f16 || type == Type::bf16) {
      // Any finite pattern of moderate size, drawn as bits: sign, exponent near the bias, mantissa; subnormals too.
      const bool half = type == Type::f16;
      const uint16_t sign = random() % 2 ? 0x8000 : 0;
      const uint16_t exponent = half ? (random() % 16) << 10 : (120 + random() % 10) << 7;
      const uint16_t bits = sign | exponent | (random() % (half ? 1024 : 128));
      tensor.values[i] = half ? half_value(bits) : bfloat_value(bits);
      store(tensor, i, bits);
    }
  }
  return tensor;
}

inline double at(const Bytes& bytes, Type type, size_t i) {
  if (type == Type::f64) return reinterpret_cast<const double*>(bytes.data())[i];
  return reinterpret_cast<const float*>(bytes.data())[i];
}

// Buffers full of NaN: what a kernel leaves unwritten shows.
inline Bytes poisoned(Type type, size_t count) {
  return Bytes(count * (type == Type::f64 ? 8 : 4), 0xff);
}

inline double distance(const Bytes& got, Type type, const std::vector<double>& wanted) {
  double error = 0.0, size = 0.0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    error += std::pow(at(got, type, i) - wanted[i], 2);
    size += wanted[i] * wanted[i];
  }
  return std::sqrt(size == 0.0 ? error : error / size);
}

inline double tolerance(Type type) { return type == Type::f64 ? 1e-14 : 1e-6; }

// Where the kernels run: memory of its own, and the three ops on it.
struct Device {
  virtual ~Device() = default;
  virtual void* copy_in(const Bytes& bytes) = 0;  // until clear()
  virtual void clear() = 0;
  virtual void copy_out(const void* data, Bytes& bytes) = 0;
  virtual void lincomb(const Combination& c, Type type, Shape shape) = 0;
  virtual void residual(const Combination& c, View y, void* sums, Type type, Shape shape) = 0;
  virtual void mix(const View* f, const View* r, int columns, void* out, Type type, Shape shape) = 0;
};

inline Bytes result(Device& device, const void* data, Type type, size_t count) {
  Bytes bytes = poisoned(type, count);
  device.copy_out(data, bytes);
  return bytes;
}

inline Bytes slice(const Bytes& bytes, size_t from, size_t count) {
  return Bytes(bytes.begin() + from, bytes.begin() + from + count);
}

struct Outcome {
  std::vector<Bytes> out;
  Bytes sums;
};

// The inputs of a combination; every second sample may have a step of its own, the last one outside the table.
struct Case {
  Case(Type type, Type second, Shape shape, int inputs, int outputs, bool own_steps)
      : shape(shape), inputs(inputs), outputs(outputs), own_steps(own_steps),
        accumulate(type == Type::f64 ? Type::f64 : Type::f32) {
    std::mt19937 random(7);
    const size_t count = shape.batch * shape.size;
    table = draw(accumulate, kSteps * inputs * outputs, random);
    y = draw(type, count, random);
    for (int n = 0; n < inputs; ++n) in.push_back(draw(n % 2 ? second : type, count, random));
    for (int64_t sample = 0; sample < (own_steps ? shape.batch : 1); ++sample)
      steps.push_back(own_steps && sample == shape.batch - 1 && sample > 0 ? kSteps : (sample + 1) % kSteps);
  }

  // All samples, or one alone as a batch of its own.
  Outcome run(Device& device, int64_t only = -1, bool residual = true) const {
    const Shape part{only < 0 ? shape.batch : 1, shape.size};
    const size_t count = part.batch * part.size, skipped = only < 0 ? 0 : only * part.size;
    const auto cut = [&](const Tensor& tensor) {
      const size_t width = tensor.type == Type::f64 ? 8 : tensor.type == Type::f32 ? 4 : 2;
      return View{device.copy_in(slice(tensor.bytes, skipped * width, count * width)), tensor.type};
    };
    std::vector<int64_t> index = steps;
    if (only >= 0) index = {steps[own_steps ? only : 0]};
    Bytes index_bytes(index.size() * 8);
    std::memcpy(index_bytes.data(), index.data(), index_bytes.size());
    Combination c{};
    c.inputs = inputs;
    c.outputs = outputs;
    c.rows = Rows{device.copy_in(table.bytes), kSteps, static_cast<const int64_t*>(device.copy_in(index_bytes)),
                  own_steps ? 1 : 0};
    for (int n = 0; n < inputs; ++n) c.in[n] = cut(in[n]);
    for (int m = 0; m < outputs; ++m) c.out[m] = device.copy_in(poisoned(accumulate, count));
    Outcome outcome;
    void* sums = device.copy_in(poisoned(accumulate, kSums * part.batch));
    if (residual)
      device.residual(c, cut(y), sums, accumulate, part);
    else
      device.lincomb(c, accumulate, part);
    for (int m = 0; m < outputs; ++m) outcome.out.push_back(result(device, c.out[m], accumulate, count));
    outcome.sums = result(device, sums, accumulate, kSums * part.batch);
    return outcome;
  }

  static constexpr int64_t kSteps = 3;
  Shape shape;
  int inputs, outputs;
  bool own_steps;
  Type accumulate;
  Tensor table, y;
  std::vector<Tensor> in;
  std::vector<int64_t> steps;
};

inline void check_lincomb(Device& device, Type type, Type second, Shape shape, int inputs, int outputs,
                          bool own_steps) {
  const Case test(type, second, shape, inputs, outputs, own_steps);
  const Type acc = test.accumulate;
  const std::string name = "lincomb type " + std::to_string(static_cast<int>(type)) + " size " +
                           std::to_string(shape.size) + " batch " + std::to_string(shape.batch);
  const Outcome got = test.run(device);
  expect(got.out == test.run(device, -1, false).out, name + ": lincomb and lincomb_residual differ");
  const size_t width = acc == Type::f64 ? 8 : 4;
  for (int64_t sample = 0; sample < shape.batch; ++sample) {
    const Outcome alone = test.run(device, sample);
    bool same = alone.sums == slice(got.sums, sample * kSums * width, kSums * width);
    const int64_t step = test.steps[own_steps ? sample : 0], row = inputs * outputs;
    std::vector<double> sums(2, 0.0);
    for (int m = 0; m < outputs; ++m) {
      const Bytes own = slice(got.out[m], sample * shape.size * width, shape.size * width);
      same = same && own == alone.out[m];
      std::vector<double> wanted(shape.size, 0.0);
      bool all_nan = true;
      for (int64_t i = 0; i < shape.size; ++i) {
        const size_t at_i = sample * shape.size + i;
        all_nan = all_nan && std::isnan(at(own, acc, i));
        if (step >= Case::kSteps) continue;
        for (int n = 0; n < inputs; ++n)
          wanted[i] += test.table.values[step * row + m * inputs + n] * test.in[n].values[at_i];
        if (m == 0) {
          sums[0] += std::pow(wanted[i] - test.y.values[at_i], 2);
          sums[1] += wanted[i] * wanted[i];
        }
      }
      if (step >= Case::kSteps)
        expect(all_nan, name + ": a step outside the table");
      else
        expect(distance(own, acc, wanted) < tolerance(acc), name);
    }
    expect(same, name + ": a batch is not its images");
    const Bytes found = slice(got.sums, sample * kSums * width, kSums * width);
    if (step >= Case::kSteps) {
      expect(std::isnan(at(found, acc, 0)) && std::isnan(at(found, acc, 1)) && at(found, acc, 2) == 0, name + ": flag");
      continue;
    }
    expect(distance(slice(found, 0, 2 * width), acc, sums) < 4 * tolerance(acc), name + " sums");
    expect(at(found, acc, 2) == 1.0, name + ": finite");
  }
}

// One sample holds an infinity, whose square and difference may be NaN; the other has huge squares and is finite.
inline void check_flags(Device& device) {
  Case test(Type::f32, Type::f32, {2, 5000}, 1, 1, false);
  for (size_t i = 0; i < test.table.values.size(); ++i) store(test.table, i, 1.0f);
  store(test.in[0], 4999, std::numeric_limits<float>::infinity());
  store(test.in[0], 5000, 3e38f);
  const Bytes sums = test.run(device).sums;
  expect(at(sums, Type::f32, 2) == 0.0, "an infinity is not finite");
  expect(std::isinf(at(sums, Type::f32, 4)) && at(sums, Type::f32, 5) == 1.0, "squares overflow, values do not");
}

inline View put(Device& device, const Tensor& tensor) { return {device.copy_in(tensor.bytes), tensor.type}; }

// Mixing the residuals themselves gives the shortest of all affine combinations: at right angles to every difference.
inline void check_anderson(Device& device, Type type, Shape shape, int columns) {
  std::mt19937 random(11);
  const Type acc = type == Type::f64 ? Type::f64 : Type::f32;
  const size_t count = shape.batch * shape.size;
  std::vector<Tensor> r;
  View views[kInputs];
  for (int j = 0; j < columns; ++j) r.push_back(draw(type, count, random));
  for (int j = 0; j < columns; ++j) views[j] = put(device, r[j]);
  void* out = device.copy_in(poisoned(acc, count));
  device.mix(views, views, columns, out, acc, shape);
  const Bytes mixed = result(device, out, acc, count);
  for (int64_t sample = 0; sample < shape.batch; ++sample)
    for (int j = 0; j < columns; ++j) {
      double product = 0.0, a = 0.0, b = 0.0;
      for (int64_t i = 0; i < shape.size; ++i) {
        const size_t e = sample * shape.size + i;
        const double x = at(mixed, acc, e), d = r[j].values[e] - r[0].values[e];
        product += x * d;
        a += x * x;
        b += d * d;
      }
      if (columns == 1) b = at(mixed, acc, sample * shape.size) == r[0].values[sample * shape.size] ? 0.0 : NAN;
      const double angle = b == 0.0 ? 0.0 : product / std::sqrt(a * b);
      expect(std::abs(angle) < (acc == Type::f64 ? 1e-9 : 1e-4), "anderson_mix of " + std::to_string(columns) +
                                                                      " columns, size " + std::to_string(shape.size));
    }
}

// Four samples: identical residuals, converged, non-finite in an old column, ordinary. Values are 1, 2, 3 in column 0, 1, 2.
inline void check_special_samples(Device& device) {
  const int64_t size = 3000;
  std::mt19937 random(3);
  std::vector<Tensor> f, r;
  View f_views[kInputs], r_views[kInputs];
  for (int j = 0; j < 3; ++j) {
    f.push_back(draw(Type::f32, 4 * size, random));
    r.push_back(draw(Type::f32, 4 * size, random));
    for (int64_t i = 0; i < 4 * size; ++i) {
      store(f[j], i, static_cast<float>(j + 1));
      if (i < size) store(r[j], i, static_cast<float>(r[0].values[i]));
      if (i / size == 1) store(r[j], i, 0.0f);
    }
  }
  store(f[0], 2 * size + 5, std::numeric_limits<float>::quiet_NaN());
  store(r[0], 2 * size + 5, std::numeric_limits<float>::quiet_NaN());
  for (int j = 0; j < 3; ++j) f_views[j] = put(device, f[j]), r_views[j] = put(device, r[j]);
  void* out = device.copy_in(poisoned(Type::f32, 4 * size));
  device.mix(f_views, r_views, 3, out, Type::f32, {4, size});
  const Bytes mixed = result(device, out, Type::f32, 4 * size);
  bool latest = true, finite = true;
  for (int64_t i = size; i < 3 * size; ++i) latest = latest && at(mixed, Type::f32, i) == 3.0;
  for (int64_t i = 0; i < 4 * size; ++i) finite = finite && std::isfinite(at(mixed, Type::f32, i));
  expect(latest, "converged and non-finite samples take the latest value");
  expect(finite, "identical residuals mix to something finite");
}

inline void check_all(Device& device) {
  for (Type type : {Type::f16, Type::bf16, Type::f32, Type::f64})
    for (int64_t size : {1, 3, 63, 129, 4095, 4096, 65537})
      for (int64_t batch : {1, 2, 5}) {
        check_lincomb(device, type, type, {batch, size}, 2, 1, false);
        check_lincomb(device, type, type == Type::f32 ? Type::bf16 : Type::f32, {batch, size}, 4, 2, true);
        for (int columns = 1; size > 3 && columns <= kInputs; ++columns)
          check_anderson(device, type, {batch, size}, columns);
        device.clear();
      }
  check_lincomb(device, Type::f32, Type::f16, {0, 16}, 3, 2, false);
  check_lincomb(device, Type::f32, Type::f32, {2, 0}, 3, 2, false);
  check_lincomb(device, Type::f32, Type::f64, {2, 300000}, 3, 1, false);
  check_flags(device);
  check_special_samples(device);
}

}  // namespace invfast::testing
