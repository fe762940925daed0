// The core's CPU kernels against a loop in double, over types, sizes and batches. Exit code 1 names the first that is off.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "anderson.h"
#include "core.h"

using invfast::Combination;
using invfast::Rows;
using invfast::Shape;
using invfast::Type;
using invfast::View;

namespace {

int failures = 0;

void expect(bool good, const std::string& what) {
  if (good) return;
  std::printf("FAILED %s\n", what.c_str());
  ++failures;
}

// A tensor of any type and the exact values it holds.
struct Tensor {
  std::vector<unsigned char> bytes;
  std::vector<double> values;
  Type type;
  View view() const { return {bytes.data(), type}; }
};

double half_value(uint16_t bits) {
  const int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
  const double sign = bits & 0x8000 ? -1.0 : 1.0;
  if (exponent == 31) return mantissa ? std::numeric_limits<double>::quiet_NaN() : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24));
}

double bfloat_value(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

template <typename T>
void store(Tensor& tensor, size_t i, T value) {
  std::memcpy(tensor.bytes.data() + i * sizeof(T), &value, sizeof(T));
}

Tensor draw(Type type, size_t count, std::mt19937& random) {
  std::normal_distribution<double> normal;
  const size_t width = type == Type::f64 ? 8 : type == Type::f32 ? 4 : 2;
  Tensor tensor{std::vector<unsigned char>(count * width), std::vector<double>(count), type};
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

double at(const std::vector<unsigned char>& bytes, Type type, size_t i) {
  if (type == Type::f64) return reinterpret_cast<const double*>(bytes.data())[i];
  return reinterpret_cast<const float*>(bytes.data())[i];
}

// Buffers full of NaN: what a kernel leaves unwritten shows.
std::vector<unsigned char> poisoned(Type type, size_t count) {
  return std::vector<unsigned char>(count * (type == Type::f64 ? 8 : 4), 0xff);
}

double distance(const std::vector<unsigned char>& got, Type type, const std::vector<double>& wanted) {
  double error = 0.0, size = 0.0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    error += std::pow(at(got, type, i) - wanted[i], 2);
    size += wanted[i] * wanted[i];
  }
  return wanted.empty() ? 0.0 : std::sqrt(error / size);
}

double tolerance(Type type) { return type == Type::f64 ? 1e-14 : 1e-6; }

void check_lincomb(Type type, Shape shape, int inputs, int outputs, bool own_rows, int threads) {
  std::mt19937 random(7);
  const Type acc = type == Type::f64 ? Type::f64 : Type::f32;
  const size_t count = shape.batch * shape.size, row = inputs * outputs;
  const Tensor rows = draw(acc, row * (own_rows ? shape.batch : 1), random), y = draw(type, count, random);
  std::vector<Tensor> in;
  std::vector<std::vector<unsigned char>> out;
  Combination c{};
  c.inputs = inputs;
  c.outputs = outputs;
  c.rows = Rows{rows.bytes.data(), own_rows ? static_cast<int64_t>(row) : 0};
  for (int n = 0; n < inputs; ++n) in.push_back(draw(type, count, random));
  for (int m = 0; m < outputs; ++m) out.push_back(poisoned(acc, count));
  for (int n = 0; n < inputs; ++n) c.in[n] = in[n].view();
  for (int m = 0; m < outputs; ++m) c.out[m] = out[m].data();
  auto sums = poisoned(acc, 2 * shape.batch);
  invfast::lincomb_residual_cpu(c, y.view(), sums.data(), acc, shape, threads);
  const auto first = out[0];
  invfast::lincomb_cpu(c, acc, shape, threads);
  expect(first == out[0], "lincomb and lincomb_residual differ");
  const std::string name = "lincomb type " + std::to_string(static_cast<int>(type)) + " size " +
                           std::to_string(shape.size) + " batch " + std::to_string(shape.batch);
  std::vector<double> wanted_sums(2 * shape.batch, 0.0);
  for (int m = 0; m < outputs; ++m) {
    std::vector<double> wanted(count, 0.0);
    for (size_t i = 0; i < count; ++i) {
      const size_t sample = i / shape.size, base = (own_rows ? sample * row : 0) + m * inputs;
      for (int n = 0; n < inputs; ++n) wanted[i] += rows.values[base + n] * in[n].values[i];
      if (m == 0) {
        wanted_sums[2 * sample] += std::pow(wanted[i] - y.values[i], 2);
        wanted_sums[2 * sample + 1] += wanted[i] * wanted[i];
      }
    }
    expect(distance(out[m], acc, wanted) < tolerance(acc), name);
  }
  expect(distance(sums, acc, wanted_sums) < 4 * tolerance(acc), name + " sums");
}

void check_anderson(Type type, Shape shape, int columns, int threads) {
  std::mt19937 random(11);
  const Type acc = type == Type::f64 ? Type::f64 : Type::f32;
  const size_t count = shape.batch * shape.size;
  std::vector<Tensor> values, residuals;
  View value_views[invfast::kInputs], residual_views[invfast::kInputs];
  for (int j = 0; j < columns; ++j) {
    values.push_back(draw(type, count, random));
    residuals.push_back(draw(type, count, random));
  }
  for (int j = 0; j < columns; ++j) value_views[j] = values[j].view(), residual_views[j] = residuals[j].view();
  auto out = poisoned(acc, count);
  invfast::anderson_mix_cpu(value_views, residual_views, columns, out.data(), acc, shape, threads);
  // The mixed residual is the shortest of all affine combinations: moving along any difference makes it longer.
  for (int64_t sample = 0; sample < shape.batch; ++sample) {
    double gram[4][4] = {}, best[4] = {};
    for (int i = 0; i < columns; ++i)
      for (int j = 0; j < columns; ++j)
        for (int64_t k = 0; k < shape.size; ++k) {
          const size_t at = sample * shape.size + k;
          gram[i][j] += residuals[i].values[at] * residuals[j].values[at];
        }
    if (columns == 2) {
      const double span = gram[0][0] - 2 * gram[0][1] + gram[1][1];
      best[0] = (gram[1][1] - gram[0][1]) / span;
      best[1] = 1 - best[0];
    } else {
      best[columns - 1] = 1.0;
    }
    if (columns > 2) continue;
    double error = 0.0, size = 0.0;
    for (int64_t k = 0; k < shape.size; ++k) {
      const size_t index = sample * shape.size + k;
      double wanted = 0.0;
      for (int j = 0; j < columns; ++j) wanted += best[j] * values[j].values[index];
      error += std::pow(at(out, acc, index) - wanted, 2);
      size += wanted * wanted;
    }
    expect(std::sqrt(error / size) < (acc == Type::f64 ? 1e-8 : 1e-5), "anderson_mix of two columns");
  }
  bool finite = true;
  for (size_t i = 0; i < count; ++i) finite = finite && std::isfinite(at(out, acc, i));
  expect(finite, "anderson_mix leaves elements unwritten");
}

void check_weights() {
  double same[3][3], weights[3];
  for (auto& row : same)
    for (double& cell : row) cell = 2.0;
  invfast::anderson_weights<3>(same, weights);
  expect(std::abs(weights[0] + weights[1] + weights[2] - 1) < 1e-6, "identical residuals: weights sum to 1");
  double zero[2][2] = {}, plain[2];
  invfast::anderson_weights<2>(zero, plain);
  expect(plain[0] == 0.0 && plain[1] == 1.0, "converged residuals take the plain update");
  double broken[2][2] = {{NAN, 0}, {0, 1}};
  invfast::anderson_weights<2>(broken, plain);
  expect(plain[0] == 0.0 && plain[1] == 1.0, "non-finite residuals take the plain update");
}

}  // namespace

int main() {
  for (Type type : {Type::f16, Type::bf16, Type::f32, Type::f64})
    for (int64_t size : {1, 3, 63, 129, 4095, 65537})
      for (int64_t batch : {1, 2, 5}) {
        check_lincomb(type, {batch, size}, 2, 1, false, 1);
        check_lincomb(type, {batch, size}, 4, 2, true, 2);
        if (size > 3) check_anderson(type, {batch, size}, 2, 2);
        if (size > 3) check_anderson(type, {batch, size}, 3, 1);
      }
  check_lincomb(Type::f32, {0, 16}, 3, 2, false, 2);
  check_lincomb(Type::f32, {3, 300000}, 3, 1, false, 4);
  check_weights();
  std::printf("%s, %d failures\n", invfast::cpu_level(), failures);
  return failures != 0;
}
